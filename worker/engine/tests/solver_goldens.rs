//! Pruning holds to what the published OBS-Diff code made of the same weights and inputs.
#![allow(missing_docs, clippy::unwrap_used)]

#[path = "golden/linear.rs"]
mod linear;

use linear::{KNOCK_ON, LinearGolden, OF_ORACLE, agreement, error, gathered, given, golden, oracle};
use obsdiff_engine::solve::{Admm, Factor, Obs, ScaledHessian, refine};
use obsdiff_proto::{Accumulate, Effort, Target};

/// Prunes a golden's weight by its inputs through our Gram, and by its Hessian, and compares.
fn holds(name: &str, golden: &LinearGolden, damping: f64, target: Target, zeros: f64, distance: f64) {
    let n = golden.n;
    let factors = [
        ("our exact Gram", Factor::new(n, gathered(golden, Accumulate::Exact), damping)),
        ("our f32 Gram", Factor::new(n, gathered(golden, Accumulate::F32), damping)),
        ("its Hessian", Factor::new(n, given::<f32>(golden), damping)),
        ("its Hessian in f64", Factor::new(n, given::<f64>(golden), damping)),
    ];
    for (from, factor) in factors {
        let factor = factor.unwrap();
        assert_eq!(factor.damping_used(), damping);
        let mut weight = golden.weight.clone();
        Obs::default().prune(&mut weight, &factor, &target).unwrap();
        let found = agreement(&weight, &golden.pruned, n);
        println!(
            "{name} by {from}: zeros {:.6}, rows {:.4}, distance {:.1e}",
            found.zeros, found.rows, found.distance
        );
        assert!(found.zeros >= zeros, "{name} by {from}: {} of the zeros agree", found.zeros);
        assert!(found.rows >= 0.85, "{name} by {from}: {} of the rows agree", found.rows);
        assert!(
            found.distance <= distance,
            "{name} by {from}: {} off where both keep the weight",
            found.distance
        );
    }
}

#[test]
fn n_of_m_holds() {
    for name in ["nm-2-4-96x256", "nm-4-8-64x192"] {
        let golden = golden(name);
        holds(name, &golden, 0.01, golden.target, 0.9999, 1e-4);
    }
}

/// The published code prunes one weight more in each block than the share asks for.
#[test]
fn unstructured_holds_but_for_one_weight_a_block() {
    for (name, knock_on) in KNOCK_ON {
        let golden = golden(name);
        let differing = golden.n.div_ceil(128) as f64 + knock_on;
        holds(name, &golden, 0.01, golden.target, 1.0 - (differing + 0.5) / golden.weight.len() as f64, 1e-4);
    }
}

/// Ratios at which our counts are the published ones, in every block but the last of 72 x 320: there ours is one lower.
#[test]
fn unstructured_holds_at_the_published_counts() {
    for (name, ratio, differing) in
        [("unstructured-50-96x128", 6145.5 / 12288.0, 0.0), ("unstructured-30-72x320", 0.30005, 1.0)]
    {
        let golden = golden(name);
        let zeros = 1.0 - (differing + 0.5) / golden.weight.len() as f64;
        holds(name, &golden, 0.01, Target::Unstructured { ratio }, zeros, 1e-4);
    }
}

/// The published mean of the diagonal counts a one for every dead column, so it damps otherwise than we do.
#[test]
fn dead_columns_hold() {
    let name = "unstructured-70-64x200-dead5";
    let golden = golden(name);
    holds(name, &golden, 0.01, golden.target, 0.998, 1e-3);
}

/// With the damping that makes of ours, and the published counts, nothing differs.
#[test]
fn dead_columns_hold_with_the_published_mean_and_counts() {
    let name = "unstructured-70-64x200-dead5";
    let golden = golden(name);
    let diagonal: Vec<f64> = (0..golden.n).map(|j| f64::from(golden.hessian[j * golden.n + j])).collect();
    let live: Vec<f64> = diagonal.iter().copied().filter(|d| *d != 0.0).collect();
    let ours = live.iter().sum::<f64>() / live.len() as f64;
    let dead = (golden.n - live.len()) as f64;
    assert_eq!(dead, 5.0);
    let published = (live.iter().sum::<f64>() + dead) / golden.n as f64;
    holds(name, &golden, 0.01 * published / ours, Target::Unstructured { ratio: 0.7001 }, 0.9999, 1e-4);
}

#[test]
fn alternating_directions_and_refinement_err_no_more_than_the_oracle() {
    for name in OF_ORACLE {
        let golden = golden(name);
        let (n, oracle) = (golden.n, oracle(name));
        for (from, upper) in [
            ("our exact Gram", gathered(&golden, Accumulate::Exact)),
            ("our f32 Gram", gathered(&golden, Accumulate::F32)),
            ("its Hessian", given::<f32>(&golden)),
        ] {
            for effort in [Effort::Fast, Effort::Thorough] {
                let hessian = ScaledHessian::of_gram(n, upper.clone(), 0.01).unwrap();
                let mut admm = Admm::default();
                admm.begin::<f32>(&hessian, effort).unwrap();
                let mut weight = golden.weight.clone();
                admm.prune(&mut weight, &hessian, &golden.target).unwrap();
                refine(&mut weight, &golden.weight, &hessian, 5).unwrap();
                let found = error(&weight, &golden);
                let agreement = agreement(&weight, &oracle.pruned, n);
                let share = found / oracle.loss;
                println!(
                    "{name} by {from}, {effort:?}: error {found:.6}, {share:.4} of the oracle's, {:.3} of the published; zeros \
                     agree {:.4}",
                    found / oracle.published,
                    agreement.zeros
                );
                assert!(share <= 1.02, "{name} by {from}, {effort:?}: {share}");
                let zeros = weight.iter().filter(|w| **w == 0.0).count();
                let ratio = match golden.target {
                    Target::Unstructured { ratio } => ratio,
                    _ => 0.5,
                };
                assert_eq!(zeros, (ratio * weight.len() as f64) as usize, "{name}");
            }
        }
    }
}
