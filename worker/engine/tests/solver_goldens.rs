//! Pruning holds to what the published OBS-Diff code made of the same weights and inputs.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::PathBuf;

use obsdiff_engine::gram::Gram;
use obsdiff_engine::solve::{Admm, Factor, Obs, ScaledHessian, refine, stride};
use obsdiff_proto::{Accumulate, Effort, Target};
use safetensors::SafeTensors;

struct Golden {
    weight: Vec<f32>,
    inputs: Vec<f32>,
    tokens: usize,
    alpha: Vec<f32>,
    hessian: Vec<f32>,
    n: usize,
    target: Target,
    pruned: Vec<f32>,
}

fn golden(name: &str) -> Golden {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets/goldens/solver");
    let path = PathBuf::from(root).join(format!("{name}.safetensors"));
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let floats = |key: &str| -> Vec<f32> {
        let data = file.tensor(key).unwrap();
        data.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let nm = file.tensor("nm").unwrap();
    let nm: Vec<i64> = nm.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    let target = match nm[1] {
        0 => Target::Unstructured { ratio: decimal(floats("sparsity")[0]) },
        m => Target::NToM { n: nm[0] as usize, m: m as usize },
    };
    Golden {
        weight: floats("weight"),
        inputs: floats("inputs"),
        tokens: file.tensor("inputs").unwrap().shape()[1],
        alpha: floats("alpha"),
        hessian: floats("hessian"),
        n: file.tensor("hessian").unwrap().shape()[0],
        target,
        pruned: floats("pruned"),
    }
}

/// The short decimal that was rounded to this f32, such as 0.7.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap()
}

/// How a pruned weight compares with the published one.
struct Agreement {
    /// Share of the weights that are zero in both or in neither.
    zeros: f64,
    /// Share of the rows of which all zeros agree.
    rows: f64,
    /// Relative L2 distance over those rows: a zero more moves everything to its right.
    distance: f64,
}

fn agreement(found: &[f32], wanted: &[f32], n: usize) -> Agreement {
    let same = |(f, w): &(&f32, &f32)| (**f == 0.0) == (**w == 0.0);
    let zeros = found.iter().zip(wanted).filter(same).count() as f64 / found.len() as f64;
    let rows =
        || found.chunks(n).zip(wanted.chunks(n)).filter(|(f, w)| f.iter().zip(*w).all(|pair| same(&pair)));
    let pairs = || rows().flat_map(|(f, w)| f.iter().zip(w)).map(|(f, w)| (f64::from(*f), f64::from(*w)));
    let error: f64 = pairs().map(|(f, w)| (f - w).powi(2)).sum();
    let size: f64 = pairs().map(|(_, w)| w * w).sum();
    Agreement {
        zeros,
        rows: rows().count() as f64 * n as f64 / found.len() as f64,
        distance: (error / size).sqrt(),
    }
}

fn gathered(golden: &Golden, accumulate: Accumulate) -> Vec<f32> {
    let mut gram = Gram::new(golden.n, accumulate, 20);
    for (rows, alpha) in golden.inputs.chunks(golden.tokens * golden.n).zip(&golden.alpha) {
        gram.observe(rows, f64::from(*alpha)).unwrap();
    }
    gram.to_upper(stride(golden.n))
}

fn given<T: Copy + Default + From<f32>>(golden: &Golden) -> Vec<T> {
    let (n, row) = (golden.n, stride(golden.n));
    let mut square = vec![T::default(); n * row];
    for (i, values) in golden.hessian.chunks(n).enumerate() {
        for j in i..n {
            square[i * row + j] = values[j].into();
        }
    }
    square
}

/// Prunes a golden's weight by its inputs through our Gram, and by its Hessian, and compares.
fn holds(name: &str, golden: &Golden, damping: f64, target: Target, zeros: f64, distance: f64) {
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

/// The published code prunes one weight more in each block than the share asks for. Besides that weight, its error may turn a few
/// later choices of its row.
#[test]
fn unstructured_holds_but_for_one_weight_a_block() {
    for (name, knock_on) in [("unstructured-50-96x128", 0.0), ("unstructured-30-72x320", 4.0)] {
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

/// tr(dW S dW^T) / tr(W S W^T) in f64, by the whole Hessian S.
fn error(after: &[f32], golden: &Golden) -> f64 {
    let n = golden.n;
    let energy = |of: &dyn Fn(usize) -> f64| -> f64 {
        let row = |r: usize| -> f64 {
            let v: Vec<f64> = (0..n).map(|j| of(r * n + j)).collect();
            (0..n * n).map(|at| v[at / n] * f64::from(golden.hessian[at]) * v[at % n]).sum()
        };
        (0..golden.weight.len() / n).map(row).sum()
    };
    let change = |at: usize| f64::from(after[at]) - f64::from(golden.weight[at]);
    energy(&change) / energy(&|at| f64::from(golden.weight[at]))
}

#[test]
fn alternating_directions_and_refinement_err_no_more_than_the_oracle() {
    for name in [
        "unstructured-50-96x128",
        "unstructured-30-72x320",
        "unstructured-70-64x200-dead5",
        "nm-2-4-96x256",
        "nm-4-8-64x192",
    ] {
        let golden = golden(name);
        let n = golden.n;
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/assets/goldens/solver");
        let bytes = std::fs::read(PathBuf::from(root).join(format!("admm-{name}.safetensors"))).unwrap();
        let oracle = SafeTensors::deserialize(&bytes).unwrap();
        let loss = |key: &str| f64::from_le_bytes(oracle.tensor(key).unwrap().data().try_into().unwrap());
        let wanted = oracle.tensor("pruned").unwrap();
        let wanted: Vec<f32> =
            wanted.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
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
                let agreement = agreement(&weight, &wanted, n);
                let share = found / loss("loss");
                println!(
                    "{name} by {from}, {effort:?}: error {found:.6}, {share:.4} of the oracle's, {:.3} of the published; zeros \
                     agree {:.4}",
                    found / loss("loss_published"),
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
