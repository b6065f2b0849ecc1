//! Grams, held to sums in f64.

use std::sync::Arc;

use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::gram::{Gram, GramError};
use obsdiff_engine::pipeline::noise;
use obsdiff_proto::{Accumulate, SiteId};

use super::{Bench, Check};
use crate::{Error, Result};

const SITE: SiteId = SiteId(0);

/// Features of an observation, and its rows: neither fills what a GPU or the processor works on at once.
const WIDTH: usize = 100;
const ROWS: usize = 300;

/// Far from overflow with noise.
const EXPONENT: i32 = 20;

/// A Gram in each kind of sums, of two observations with weights.
///
/// # Errors
/// When the device fails.
pub(super) fn checks(bench: &Bench<'_>) -> Result<Vec<Check>> {
    let observations = [(1, 0.75), (2, 1.25)].map(|(seed, alpha)| (rows(seed), alpha));
    let mut wanted = vec![0.0; WIDTH * WIDTH];
    for (rows, alpha) in &observations {
        for row in rows.as_ref().map_err(|e| Error::Session(e.to_string()))?.chunks_exact(WIDTH) {
            for (i, a) in row.iter().enumerate() {
                let sums = wanted[i * WIDTH..].iter_mut().zip(row).skip(i);
                sums.for_each(|(sum, b)| *sum += alpha * f64::from(*a) * f64::from(*b));
            }
        }
    }
    let mut checks = Vec::new();
    for (accumulate, name) in [(Accumulate::Exact, "exact"), (Accumulate::F32, "f32")] {
        let sum = |device: &ComputeDevice| -> Result<(Vec<f64>, f64)> {
            let mut gram = Gram::new(WIDTH, accumulate, EXPONENT);
            let mut grams = device.grams();
            grams.open(SITE, &Arc::new(gram.clone())).map_err(failed)?;
            let (_, seconds) = bench.timed(|| {
                observations.iter().try_for_each(|(rows, alpha)| match rows {
                    Ok(rows) => grams.observe(SITE, rows, *alpha).map_err(failed),
                    Err(error) => Err(Error::Session(error.to_string())),
                })
            })?;
            grams.read(SITE, &mut gram).map_err(failed)?;
            let mass = gram.mass();
            Ok((gram.to_upper(WIDTH).into_iter().map(|mean: f64| mean * mass).collect(), seconds))
        };
        let (_, processor_seconds) = sum(&ComputeDevice::Cpu)?;
        let (found, seconds) = sum(bench.device)?;
        let largest = wanted.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        let off = found.iter().zip(&wanted).fold(0.0, |most: f64, (a, b)| most.max((a - b).abs()));
        checks.push(Check {
            what: format!("Gram of {ROWS} x {WIDTH}, {name} sums"),
            off: off / largest,
            // Products are summed in f32, over so many rows.
            limit: 1e-5,
            seconds,
            processor_seconds: Some(processor_seconds),
        });
    }
    Ok(checks)
}

fn rows(seed: u64) -> obsdiff_engine::Result<Vec<f32>> {
    Ok(noise(seed, &[ROWS * WIDTH])?.to_vec1()?)
}

fn failed(error: GramError) -> Error {
    Error::Session(error.to_string())
}
