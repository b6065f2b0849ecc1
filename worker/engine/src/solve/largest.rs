//! The largest values of a matrix: which stay, exactly so many, ties by (column, row).

use rayon::prelude::*;

/// Values that one task counts.
const CHUNK: usize = 1 << 17;

/// Bits of a key that are told apart first, and then the rest: a key is |x| as its bits, without the sign.
const HIGH: u32 = 15;
const LOW: u32 = 16;

/// |x| as a number that sorts as it does.
#[inline(always)]
pub(super) fn key(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// Which values of a matrix stay: those whose key is at least `least`, but for some that lie in `tied`.
#[derive(Debug, Default)]
pub(super) struct Threshold {
    pub(super) least: u32,
    /// Values that go though their key is `least`, by their places in the matrix, ascending.
    pub(super) tied: Vec<usize>,
}

/// Has all values of `matrix` (rows x n) stay but the `pruned` smallest; of equal ones those go first that come first by (column, row).
/// A value of 0 counts as gone whether it is among them or not.
pub(super) fn largest(matrix: &[f32], n: usize, pruned: usize) -> Threshold {
    if pruned == 0 {
        return Threshold::default();
    }
    if pruned >= matrix.len() {
        return Threshold { least: u32::MAX, tied: Vec::new() };
    }
    let (high, below) = ranked(&counts(matrix, HIGH, |x| Some(key(x) >> LOW)), pruned);
    let of_high = |x: f32| (key(x) >> LOW == high).then_some(key(x) & ((1 << LOW) - 1));
    let low = counts(matrix, LOW, of_high);
    let (last, below_last) = ranked(&low, pruned - below);
    let limit = high << LOW | last;
    let (going, equal) = (pruned - below - below_last, low[last as usize]);
    if limit == 0 || going == equal {
        return Threshold { least: limit + 1, tied: Vec::new() };
    }
    let chunks = matrix.par_chunks(CHUNK).enumerate();
    let places = chunks.flat_map_iter(|(chunk, values)| {
        let tied = values.iter().enumerate().filter(|(_, x)| key(**x) == limit);
        tied.map(move |(at, _)| chunk * CHUNK + at)
    });
    let mut tied: Vec<usize> = places.collect();
    tied.sort_unstable_by_key(|at| (at % n, at / n));
    tied.truncate(going);
    tied.sort_unstable();
    Threshold { least: limit, tied }
}

/// How many values fall to each of 2^`bits` numbers; those for which there is none are left out.
fn counts(matrix: &[f32], bits: u32, number: impl Fn(f32) -> Option<u32> + Sync) -> Vec<usize> {
    let none = || vec![0usize; 1 << bits];
    let count = |mut counts: Vec<usize>, values: &[f32]| {
        values.iter().filter_map(|x| number(*x)).for_each(|number| counts[number as usize] += 1);
        counts
    };
    let add = |mut a: Vec<usize>, b: Vec<usize>| {
        a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
        a
    };
    matrix.par_chunks(CHUNK).fold(none, count).reduce(none, add)
}

/// The number of the `rank`-th smallest value, counted from 1, and how many values have a smaller one.
fn ranked(counts: &[usize], rank: usize) -> (u32, usize) {
    let mut below = 0;
    for (number, count) in counts.iter().enumerate() {
        if below + count >= rank {
            return (number as u32, below);
        }
        below += count;
    }
    (counts.len() as u32, below)
}

/// Sets those of `keys`, a group of columns of a row, to 0 that go: the `pruned` smallest, of equal ones the first.
pub(super) fn drop_smallest(keys: &mut [u32], pruned: usize, order: &mut Vec<u32>) {
    if pruned == 0 {
        return;
    }
    if keys.len() <= 8 {
        let rank = |j: usize| {
            let smaller = |(i, other): (usize, &u32)| *other < keys[j] || (*other == keys[j] && i < j);
            keys.iter().enumerate().filter(|pair| smaller(*pair)).count()
        };
        let mut goes = [false; 8];
        (0..keys.len()).for_each(|j| goes[j] = rank(j) < pruned);
        keys.iter_mut().zip(goes).filter(|(_, goes)| *goes).for_each(|(key, _)| *key = 0);
        return;
    }
    order.clear();
    order.extend(0..keys.len() as u32);
    order.select_nth_unstable_by_key(pruned.min(keys.len()) - 1, |j| (keys[*j as usize], *j));
    order.iter().take(pruned).for_each(|j| keys[*j as usize] = 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The places that go, by sorting all of them.
    fn sorted(matrix: &[f32], n: usize, pruned: usize) -> Vec<usize> {
        let mut places: Vec<usize> = (0..matrix.len()).collect();
        places.sort_by_key(|at| (key(matrix[*at]), at % n, at / n));
        places.truncate(pruned);
        places.sort_unstable();
        places
    }

    fn gone(matrix: &[f32], kept: &Threshold) -> Vec<usize> {
        let goes = |at: &usize| key(matrix[*at]) < kept.least || kept.tied.binary_search(at).is_ok();
        (0..matrix.len()).filter(goes).collect()
    }

    proptest! {
        #[test]
        fn exactly_so_many_go_by_size_column_and_row(
            columns in 1usize..9,
            values in prop::collection::vec((-6i8..7).prop_map(|x| f32::from(x) * 0.25), 1..120),
            share in 0.0f64..=1.0,
        ) {
            let rows = values.len().div_ceil(columns);
            let mut matrix = values;
            matrix.resize(rows * columns, 1.0);
            let pruned = (share * matrix.len() as f64).round() as usize;
            let kept = largest(&matrix, columns, pruned);
            let zero = |at: &usize| matrix[*at] == 0.0;
            let wanted: Vec<usize> = sorted(&matrix, columns, pruned).into_iter().filter(|at| !zero(at)).collect();
            let found: Vec<usize> = gone(&matrix, &kept).into_iter().filter(|at| !zero(at)).collect();
            prop_assert_eq!(found, wanted);
        }

        #[test]
        fn of_a_group_the_smallest_go(keys in prop::collection::vec(1u32..9, 1..40), share in 0.0f64..=1.0) {
            let pruned = (share * keys.len() as f64) as usize;
            let mut order: Vec<usize> = (0..keys.len()).collect();
            order.sort_by_key(|j| (keys[*j], *j));
            let mut wanted = keys.clone();
            order[..pruned].iter().for_each(|j| wanted[*j] = 0);
            let mut found = keys;
            drop_smallest(&mut found, pruned, &mut Vec::new());
            prop_assert_eq!(found, wanted);
        }
    }

    #[test]
    fn values_that_differ_in_any_bit_are_told_apart() {
        let matrix: Vec<f32> =
            (0..40_000u32).map(|i| f32::from_bits(0x3f80_0000 + i * 7919 % 400_000)).collect();
        for pruned in [0, 1, 2, 777, 20_000, 39_999, 40_000] {
            assert_eq!(
                gone(&matrix, &largest(&matrix, 100, pruned)),
                sorted(&matrix, 100, pruned),
                "{pruned}"
            );
        }
    }
}
