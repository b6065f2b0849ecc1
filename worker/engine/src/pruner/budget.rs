//! A budget over the whole model: how many heads and neurons each structure loses, so that a share of the arithmetic is saved with the
//! least error.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use thiserror::Error;

/// What removing a structure's parts one after another would bring, in the order in which they would go.
#[derive(Clone, Debug, PartialEq)]
pub struct RemovalCurve {
    /// The error that each further part adds; as many as may be removed.
    pub errors: Vec<f64>,
    /// Operations that each part saves.
    pub flops: f64,
    /// How many parts go together in the first step.
    pub first: usize,
    /// How many parts go together in each later step.
    pub unit: usize,
}

impl RemovalCurve {
    /// The step after `count` parts are gone: how many parts go together, and the mean error that one of them adds. None when no more may
    /// be removed.
    fn next(&self, count: usize) -> Option<(usize, f64)> {
        let parts = if count == 0 { self.first } else { self.unit };
        let errors = self.errors.get(count..count + parts).filter(|errors| !errors.is_empty())?;
        Some((parts, errors.iter().sum::<f64>() / parts as f64))
    }
}

/// A budget that asks for more than can be saved.
#[derive(Clone, Copy, Debug, PartialEq, Error)]
#[error("{asked:.3e} operations are to be saved, but at most {possible:.3e} can be")]
pub struct OutOfReach {
    /// Operations to save.
    pub asked: f64,
    /// Operations that are saved when every part goes that may.
    pub possible: f64,
}

/// How many parts each structure loses so that `saving` operations are saved. Steps are taken one at a time, always the one that adds the
/// least error for each operation saved; on a tie, that of the earlier structure.
///
/// # Errors
/// [`OutOfReach`] when removing every part that may go does not save as much.
pub fn allocate(curves: &[RemovalCurve], saving: f64) -> Result<Vec<usize>, OutOfReach> {
    let possible = possible(curves);
    if saving > possible {
        return Err(OutOfReach { asked: saving, possible });
    }
    let mut counts = vec![0; curves.len()];
    let next = |structure: usize, count: usize| {
        let curve = curves.get(structure)?;
        let (parts, error) = curve.next(count)?;
        Some(Reverse(NextParts { price: error / curve.flops, structure, parts }))
    };
    let mut open: BinaryHeap<_> = (0..curves.len()).filter_map(|structure| next(structure, 0)).collect();
    let mut saved = 0.0;
    while saved < saving {
        let Some(Reverse(NextParts { structure, parts, .. })) = open.pop() else { break };
        counts[structure] += parts;
        saved += parts as f64 * curves[structure].flops;
        open.extend(next(structure, counts[structure]));
    }
    Ok(counts)
}

/// Operations that are saved when every part goes that may.
pub fn possible(curves: &[RemovalCurve]) -> f64 {
    curves.iter().map(|curve| curve.errors.len() as f64 * curve.flops).sum()
}

/// The next step of a structure.
struct NextParts {
    /// Error for each operation saved.
    price: f64,
    structure: usize,
    parts: usize,
}

impl Ord for NextParts {
    fn cmp(&self, other: &Self) -> Ordering {
        self.price.total_cmp(&other.price).then(self.structure.cmp(&other.structure))
    }
}

impl PartialOrd for NextParts {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for NextParts {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for NextParts {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn curve(errors: &[f64], flops: f64) -> RemovalCurve {
        RemovalCurve { errors: errors.to_vec(), flops, first: 1, unit: 1 }
    }

    #[test]
    fn parts_that_go_together_are_priced_together() {
        // 6 for 2 at first, then 3 for 4: whole units go, although single parts would be cheaper elsewhere.
        let aligned = RemovalCurve { first: 2, unit: 4, ..curve(&[1.0, 5.0, 0.5, 0.5, 1.0, 1.0], 1.0) };
        let curves = [aligned, curve(&[2.0, 4.0, 9.0], 1.0)];
        let counts = |saving| allocate(&curves, saving).unwrap();
        assert_eq!([1.0, 2.0, 3.0, 5.0].map(counts), [[0, 1], [2, 1], [2, 1], [6, 1]]);
        assert_eq!(counts(9.0), [6, 3]);
    }

    #[test]
    fn what_costs_least_for_what_it_saves_goes_first() {
        let curves = [curve(&[1.0, 5.0, 9.0], 1.0), curve(&[4.0, 6.0], 2.0), curve(&[100.0], 10.0)];
        let counts = |saving| allocate(&curves, saving).unwrap();
        assert_eq!(counts(0.0), [0, 0, 0]);
        // 1 for 1, then 4 for 2, 6 for 2, 5 for 1, 9 for 1, 100 for 10.
        assert_eq!(counts(1.0), [1, 0, 0]);
        assert_eq!(counts(1.5), [1, 1, 0]);
        assert_eq!(counts(5.5), [2, 2, 0]);
        assert_eq!(counts(17.0), [3, 2, 1]);
        assert_eq!(allocate(&curves, 17.5), Err(OutOfReach { asked: 17.5, possible: 17.0 }));
        let equal = [curve(&[1.0], 1.0), curve(&[1.0], 1.0)];
        assert_eq!(allocate(&equal, 1.0), Ok(vec![1, 0]));
    }

    proptest! {
        #[test]
        fn no_more_goes_than_is_needed(
            curves in prop::collection::vec((prop::collection::vec(0.0f64..9.0, 0..20), 0.1f64..3.0), 1..12),
            share in 0.0f64..=1.0,
        ) {
            let curves: Vec<_> = curves.into_iter().map(|(errors, flops)| RemovalCurve { errors, flops, first: 1, unit: 1 }).collect();
            let saving = share * possible(&curves);
            let counts = allocate(&curves, saving * (1.0 - 1e-12)).unwrap();
            let saved: f64 = counts.iter().zip(&curves).map(|(n, c)| *n as f64 * c.flops).sum();
            let largest = curves.iter().map(|c| c.flops).fold(0.0, f64::max);
            prop_assert!(saved >= saving * (1.0 - 1e-9) && saved <= saving + largest);
            prop_assert!(counts.iter().zip(&curves).all(|(n, c)| *n <= c.errors.len()));
        }
    }
}
