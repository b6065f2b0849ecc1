//! What `device_times` measures.
//!
//! DEVICE is cpu, cuda or cuda:N. An observation of TOKENS rows in bf16 is added to a Gram of each WIDTH: from the memory of the device,
//! where blocks leave it. Each linear of ROWS x WIDTH is pruned to half of its weights, by alternating directions with refinement and by
//! OBS; that includes what its site's Gram is factorised for. Linears and Grams lie on the host before and after.
//!
//! Each FOLDER holds the `config.json` of a transformer. One block of each of its kinds is computed in bf16, with random weights: for BATCH
//! pictures of SIDE x SIDE latent pixels and TEXT tokens. Seconds are those of the fastest of several rounds.

mod blocks;

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use obsdiff_engine::device::{ComputeDevice, DeviceName};
use obsdiff_engine::gram::Gram;
use obsdiff_engine::solve::{Factor, Obs, SiteSettings, SiteSolver, stride};
use obsdiff_proto::{Accumulate, Effort, Precision, SiteId, Target};
use obsdiff_tests::noise;
use serde_json::{Value, json};

const USAGE: &str = "device_times DEVICE TOKENS WIDTH,.. ROWSxWIDTH,.. [FOLDER:BATCH:SIDE:TEXT]...";
const SITE: SiteId = SiteId(0);
/// Far from overflow with noise.
const EXPONENT: i32 = 20;
/// The defaults of a job.
const SETTINGS: SiteSettings =
    SiteSettings { damping: 0.01, precision: Precision::F32, effort: Effort::Fast, refinement: 5 };
const HALF: Target = Target::Unstructured { ratio: 0.5 };
const ROUNDS: usize = 3;

/// All that the arguments ask for.
pub(crate) fn measured(arguments: &[String]) -> Result<Value> {
    let [device, tokens, widths, linears, blocks @ ..] = arguments else { anyhow::bail!(USAGE) };
    let name: DeviceName = device.parse()?;
    let (device, tokens) = (ComputeDevice::open(name)?, tokens.parse().context(USAGE)?);
    let mut grams = Vec::new();
    for width in widths.split(',') {
        let width = width.parse().context(USAGE)?;
        let (_, seconds) = observed(&device, tokens, width)?;
        grams.push(json!({ "tokens": tokens, "width": width, "seconds": seconds }));
    }
    let mut solves = Vec::new();
    for linear in linears.split(',') {
        let (rows, width) = linear.split_once('x').context(USAGE)?;
        solves.push(solved(&device, tokens, rows.parse().context(USAGE)?, width.parse().context(USAGE)?)?);
    }
    let blocks = blocks.iter().map(|call| blocks::computed(&device, call)).collect::<Result<Vec<_>>>()?;
    let blocks = blocks.concat();
    Ok(json!({ "device": name.to_string(), "grams": grams, "solves": solves, "blocks": blocks }))
}

/// A Gram of noise, and how long it takes to add an observation.
fn observed(device: &ComputeDevice, tokens: usize, width: usize) -> Result<(Gram, f64)> {
    let rows = Tensor::from_vec(noise(1, tokens * width), (tokens, width), &Device::Cpu)?;
    let rows = rows.to_dtype(DType::BF16)?;
    let there = device.matrix(&rows)?;
    let host: Vec<f32> = rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    let mut gram = Gram::new(width, Accumulate::Exact, EXPONENT);
    let mut grams = device.grams();
    grams.open(SITE, &Arc::new(gram.clone()))?;
    let seconds = fastest(|| {
        // The processor takes rows as f32.
        if !grams.observe_in_place(SITE, &there, 1.0)? {
            grams.observe(SITE, &host, 1.0)?;
        }
        Ok(())
    })?;
    grams.read(SITE, &mut gram)?;
    Ok((gram, seconds))
}

/// How long it takes to prune a linear in either way.
fn solved(device: &ComputeDevice, tokens: usize, rows: usize, width: usize) -> Result<Value> {
    let upper = observed(device, tokens, width)?.0.to_upper(stride(width));
    let weight = noise(2, rows * width);
    let by = |solver: &mut dyn SiteSolver, settings: SiteSettings| {
        fastest(|| {
            solver.begin(width, upper.clone(), settings)?;
            for solved in solver.solve(&[(&weight, HALF)]) {
                solved?;
            }
            Ok(())
        })
    };
    let mut solver = device.solver();
    solver.reserve(SETTINGS.effort, width, weight.len());
    let seconds = by(&mut *solver, SETTINGS)?;
    drop(solver);
    let obs_seconds = match device.obs_solver(SETTINGS.damping) {
        Some(mut solver) => by(&mut *solver, SiteSettings { refinement: 0, ..SETTINGS })?,
        None => fastest(|| {
            let factor = Factor::new(width, upper.clone(), SETTINGS.damping)?;
            Ok(Obs::default().prune(&mut weight.clone(), &factor, &HALF)?)
        })?,
    };
    Ok(json!({ "rows": rows, "width": width, "seconds": seconds, "obs_seconds": obs_seconds }))
}

fn fastest(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut fastest = f64::INFINITY;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        work()?;
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    Ok(fastest)
}
