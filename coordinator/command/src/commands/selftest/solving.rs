//! Linears, pruned and refined. The device's errors are held to what its weights do to the Gram in f64, and its masks to the processor's.

use std::sync::Arc;

use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::gram::Gram;
use obsdiff_engine::pipeline::noise;
use obsdiff_engine::solve::{SiteSettings, SiteSolver, SolveError, SolvedWeight, stride};
use obsdiff_proto::{Accumulate, Effort, Precision, SiteId, Target};

use super::{Bench, Check};
use crate::{Error, Result};

/// Rows of the linear, and its columns.
const ROWS: usize = 96;
const N: usize = 160;

/// The defaults of a job.
const SETTINGS: SiteSettings =
    SiteSettings { damping: 0.01, precision: Precision::F32, effort: Effort::Fast, refinement: 5 };

/// The damping of masks by OBS.
const MASK_DAMPING: f64 = 0.03;

/// Half of the weights and 2:4 by each method that the device knows: how far the error is off that of the weights, and which share of the
/// weights is pruned on one device alone.
///
/// # Errors
/// When the device fails.
pub(super) fn checks(bench: &Bench<'_>) -> Result<Vec<Check>> {
    let mut gram = Gram::new(N, Accumulate::Exact, 20);
    let mut features: Vec<f32> = numbers(11, 2 * N * N)?;
    for row in features.chunks_mut(N) {
        (1..N).for_each(|j| row[j] += 0.5 * row[j - 1]);
    }
    let mut grams = ComputeDevice::Cpu.grams();
    let gathered = grams.open(SiteId(0), &Arc::new(gram.clone()));
    let gathered = gathered.and_then(|()| grams.observe(SiteId(0), &features, 1.0));
    let gathered = gathered.and_then(|()| grams.read(SiteId(0), &mut gram));
    gathered.map_err(|error| Error::Session(error.to_string()))?;
    let dense = numbers(12, ROWS * N)?;
    let mut checks = Vec::new();
    for (name, target) in [("50%", Target::Unstructured { ratio: 0.5 }), ("2:4", Target::NToM { n: 2, m: 4 })]
    {
        let solve =
            |mut solver: Box<dyn SiteSolver>| bench.timed(|| solved(&mut *solver, &gram, &dense, target));
        let (processor, processor_seconds) = solve(ComputeDevice::Cpu.solver())?;
        let (found, seconds) = solve(bench.device.solver())?;
        let check = |what: &str, off, limit, seconds, of_processor| Check {
            what: format!("{what} of {ROWS} x {N}, {name}"),
            off,
            limit,
            seconds,
            processor_seconds: of_processor,
        };
        let off = error_off(&gram, &dense, &found);
        checks.push(check("admm, error", off, 0.01, seconds, Some(processor_seconds)));
        let differ = masks_differ(&found, &processor);
        checks.push(check("admm, masks", differ, 0.005, seconds, Some(processor_seconds)));
        if let Some(solver) = bench.device.obs_solver(MASK_DAMPING) {
            let (found, seconds) = solve(solver)?;
            checks.push(check("obs, error", error_off(&gram, &dense, &found), 0.01, seconds, None));
        }
    }
    Ok(checks)
}

fn numbers(seed: u64, count: usize) -> Result<Vec<f32>> {
    let noise = noise(seed, &[count])?;
    Ok(noise.to_vec1().map_err(obsdiff_engine::Error::from)?)
}

fn solved(solver: &mut dyn SiteSolver, gram: &Gram, dense: &[f32], target: Target) -> Result<SolvedWeight> {
    let failed = |error: SolveError| Error::Session(error.to_string());
    solver.reserve(SETTINGS.effort, N, dense.len());
    solver.begin(N, gram.to_upper(stride(N)), SETTINGS).map_err(failed)?;
    let solved = solver.solve(&[(dense, target)]).pop();
    solver.end();
    solved.unwrap_or(Err(SolveError::Size { rows: ROWS, columns: N, found: 0 })).map_err(failed)
}

/// How far the relative error that a solver reports is off the one that its weight has: tr(dW S dW^T) / tr(W S W^T).
fn error_off(gram: &Gram, dense: &[f32], solved: &SolvedWeight) -> f64 {
    let upper: Vec<f64> = gram.to_upper(N);
    let energy = |of: &dyn Fn(usize) -> f64| -> f64 {
        let row = |row: usize| {
            let of: Vec<f64> = (0..N).map(|j| of(row * N + j)).collect();
            let column = |j: usize| {
                let above: f64 = (0..j).map(|i| of[i] * upper[i * N + j]).sum();
                of[j] * (2.0 * above + of[j] * upper[j * N + j])
            };
            (0..N).map(column).sum::<f64>()
        };
        (0..ROWS).map(row).sum()
    };
    let change = energy(&|at| f64::from(solved.weight[at]) - f64::from(dense[at]));
    let whole = energy(&|at| f64::from(dense[at]));
    (solved.energy.relative() / (change / whole) - 1.0).abs()
}

/// The share of weights that only one of two pruned.
fn masks_differ(a: &SolvedWeight, b: &SolvedWeight) -> f64 {
    let pairs = a.weight.iter().zip(&b.weight);
    pairs.filter(|(a, b)| (**a == 0.0) != (**b == 0.0)).count() as f64 / b.weight.len().max(1) as f64
}
