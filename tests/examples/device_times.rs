//! How long a device takes to add observations to Grams and to prune linears by them, as one JSON object.
//!
//! `device_times DEVICE TOKENS WIDTH,.. ROWSxWIDTH,..`: DEVICE is cpu, cuda or cuda:N. An observation of TOKENS rows is added to a Gram of
//! each WIDTH. Each linear of ROWS x WIDTH is pruned to half of its weights by alternating directions and refined; that includes the inverses
//! of its site. What is observed or pruned lies on the host before and after. Seconds are those of the fastest of three.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use obsdiff_engine::device::{ComputeDevice, DeviceName};
use obsdiff_engine::gram::Gram;
use obsdiff_engine::solve::{SiteSettings, stride};
use obsdiff_proto::{Accumulate, Effort, Precision, SiteId, Target};
use obsdiff_tests::noise;
use serde_json::json;

const SITE: SiteId = SiteId(0);
/// Far from overflow with noise.
const EXPONENT: i32 = 20;
/// The defaults of a job.
const SETTINGS: SiteSettings =
    SiteSettings { damping: 0.01, precision: Precision::F32, effort: Effort::Fast, refinement: 5 };
const REPEATED: usize = 3;

fn main() -> Result<()> {
    const USAGE: &str = "device_times DEVICE TOKENS WIDTH,.. ROWSxWIDTH,..";
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().context(USAGE);
    let [device, tokens, widths, linears] = [next()?, next()?, next()?, next()?];
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
        let (rows, width) = (rows.parse().context(USAGE)?, width.parse().context(USAGE)?);
        let seconds = solved(&device, tokens, rows, width)?;
        solves.push(json!({ "rows": rows, "width": width, "seconds": seconds }));
    }
    println!("{}", json!({ "device": name.to_string(), "grams": grams, "solves": solves }));
    Ok(())
}

/// A Gram of noise, and how long it takes to add an observation.
fn observed(device: &ComputeDevice, tokens: usize, width: usize) -> Result<(Gram, f64)> {
    let rows = noise(1, tokens * width);
    let mut gram = Gram::new(width, Accumulate::Exact, EXPONENT);
    let mut grams = device.grams();
    grams.open(SITE, &Arc::new(gram.clone()))?;
    let seconds = fastest(|| Ok(grams.observe(SITE, &rows, 1.0)?))?;
    grams.read(SITE, &mut gram)?;
    Ok((gram, seconds))
}

/// How long it takes to prune a linear.
fn solved(device: &ComputeDevice, tokens: usize, rows: usize, width: usize) -> Result<f64> {
    let upper = observed(device, tokens, width)?.0.to_upper(stride(width));
    let weight = noise(2, rows * width);
    let mut solver = device.solver();
    solver.reserve(SETTINGS.effort, width, weight.len());
    fastest(|| {
        solver.begin(width, upper.clone(), SETTINGS)?;
        for solved in solver.solve(&[(&weight, Target::Unstructured { ratio: 0.5 })]) {
            solved?;
        }
        Ok(())
    })
}

fn fastest(mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut fastest = f64::INFINITY;
    for _ in 0..REPEATED {
        let start = Instant::now();
        work()?;
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    Ok(fastest)
}
