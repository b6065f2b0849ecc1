//! Golden linears, pruned on the device.

use obsdiff_engine::solve::{SiteSettings, SiteSolver};
use obsdiff_proto::{Accumulate, Precision, Target};

use crate::device;
use crate::linear::{KNOCK_ON, LinearGolden, OF_ORACLE, agreement, error, gathered, given, golden, oracle};
use crate::solver::FAST;

/// The golden's weight after a solver has pruned it by this Gram.
fn pruned(
    solver: &mut dyn SiteSolver,
    golden: &LinearGolden,
    upper: Vec<f32>,
    settings: SiteSettings,
) -> Vec<f32> {
    assert_eq!(solver.begin(golden.n, upper, settings), Ok(settings.damping));
    let solved = solver.solve(&[(&golden.weight, golden.target)]).remove(0).unwrap();
    solver.end();
    solved.weight
}

/// The bounds are those of the processor in `tests/solver_goldens.rs`, but for what scaled coordinates round otherwise.
#[test]
fn obs_holds_to_the_published_code() {
    let Some(mut solver) = device().obs_solver(0.01) else { return };
    let one_more = KNOCK_ON.map(|(name, knock_on)| {
        let golden = golden(name);
        let differing = golden.n.div_ceil(128) as f64 + knock_on;
        (name, 1.0 - (differing + 0.5) / golden.weight.len() as f64)
    });
    let others =
        [("nm-2-4-96x256", 0.9999), ("nm-4-8-64x192", 0.9999), ("unstructured-70-64x200-dead5", 0.998)];
    for (name, zeros) in one_more.into_iter().chain(others) {
        let golden = golden(name);
        for precision in [Precision::F32, Precision::F64] {
            let settings = SiteSettings { refinement: 0, precision, ..FAST };
            let found =
                agreement(&pruned(&mut *solver, &golden, given(&golden), settings), &golden.pruned, golden.n);
            println!(
                "{name}: zeros {:.6}, rows {:.4}, distance {:.1e}",
                found.zeros, found.rows, found.distance
            );
            assert!(found.zeros >= zeros, "{name}: {} of the zeros agree", found.zeros);
            assert!(found.rows >= 0.85, "{name}: {} of the rows agree", found.rows);
            assert!(found.distance <= 1e-3, "{name}: {} off where both keep the weight", found.distance);
        }
    }
}

#[test]
fn alternating_directions_err_no_more_than_the_oracle() {
    let mut solver = device().solver();
    for name in OF_ORACLE {
        let (golden, oracle) = (golden(name), oracle(name));
        let settings = SiteSettings { refinement: 5, ..FAST };
        let weight = pruned(&mut *solver, &golden, gathered(&golden, Accumulate::Exact), settings);
        let error = error(&weight, &golden);
        let share = error / oracle.loss;
        println!(
            "{name}: {share:.4} of the oracle's error, {:.3} of the published",
            error / oracle.published
        );
        assert!(share <= 1.02, "{name}: {share}");
        assert!(agreement(&weight, &oracle.pruned, golden.n).zeros >= 0.9, "{name}");
        let zeros = weight.iter().filter(|w| **w == 0.0).count();
        let ratio = match golden.target {
            Target::Unstructured { ratio } => ratio,
            _ => 0.5,
        };
        assert_eq!(zeros, (ratio * weight.len() as f64) as usize, "{name}");
    }
}
