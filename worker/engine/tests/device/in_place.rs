//! Sites that are solved by Grams where their sums lie.

use std::sync::Arc;

use obsdiff_engine::gram::{Gram, PlacedGram};
use obsdiff_engine::solve::{PackedUpper, SiteSettings, SiteSolver, SolveError, stride};
use obsdiff_proto::{Accumulate, Precision, SiteId, Target};
use obsdiff_tests::noise;

use crate::device;
use crate::solver::FAST;

/// The device's Gram of random rows whose feature `dead` is always 0.
fn summed(n: usize, accumulate: Accumulate, dead: usize) -> PlacedGram {
    let mut rows = noise(3, 2 * n * n);
    rows.chunks_mut(n).for_each(|row| row[dead] = 0.0);
    let mut grams = device().grams();
    grams.open(SiteId(0), &Arc::new(Gram::new(n, accumulate, 30))).unwrap();
    grams.observe(SiteId(0), &rows, 0.9).unwrap();
    grams.share(SiteId(0)).unwrap().unwrap()
}

/// The device's solvers: by alternating directions, and by OBS where it has one.
fn solvers() -> Vec<Box<dyn SiteSolver>> {
    let mut solvers = vec![device().solver()];
    solvers.extend(device().obs_solver(0.03));
    solvers
}

#[test]
fn a_gram_in_place_prunes_to_the_bytes_of_its_square() {
    let targets = [Target::Unstructured { ratio: 0.6 }, Target::NToM { n: 2, m: 4 }];
    if device().gpu().is_none() {
        // The host's Grams are squares at once.
        assert!(summed(4, Accumulate::Exact, 0).packed().is_none());
        return;
    }
    for (rows, n, accumulate, precision) in [
        (20, 36, Accumulate::Exact, Precision::F32),
        (11, 45, Accumulate::F32, Precision::F32),
        (16, 130, Accumulate::Exact, Precision::F64),
    ] {
        let gram = summed(n, accumulate, 5);
        let settings = SiteSettings { precision, ..FAST };
        let dense = noise(8, rows * n);
        let wanted = targets.map(|target| (dense.as_slice(), target));
        for mut solver in solvers() {
            let upper = gram.to_host().unwrap().to_upper(stride(n));
            let damping = solver.begin(n, upper, settings).unwrap();
            let by_square = solver.solve(&wanted);
            solver.end();
            let packed = gram.packed().unwrap();
            assert_eq!(solver.begin_in_place(&packed, settings), Some(Ok(damping)));
            for (found, wanted) in solver.solve(&wanted).into_iter().zip(by_square) {
                let (found, wanted) = (found.unwrap(), wanted.unwrap());
                assert!(found.weight == wanted.weight, "{rows} x {n}");
                assert_eq!(found.energy.relative().to_bits(), wanted.energy.relative().to_bits());
            }
        }
    }
}

#[test]
fn what_cannot_be_solved_in_place_is_refused() {
    let Some(packed) = summed(12, Accumulate::Exact, 0).packed() else { return };
    let short = PackedUpper { n: 13, ..packed.clone() };
    let negative = SiteSettings { damping: -1.0, ..FAST };
    for mut solver in solvers() {
        // OBS damps the Gram by which it chooses masks, and what refines by this one.
        let refused = solver.begin_in_place(&packed, negative).unwrap();
        assert_eq!(refused, Err(SolveError::Damping { damping: -1.0 }));
        let refused = solver.begin_in_place(&short, FAST).unwrap();
        assert_eq!(refused, Err(SolveError::Size { rows: 13, columns: 13, found: 78 }));
        assert!(solver.solve(&[(&[0.0; 12], Target::NToM { n: 2, m: 4 })]).remove(0).is_err());
    }
}
