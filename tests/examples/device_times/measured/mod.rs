//! What `device_times` measures.
//!
//! DEVICE is cpu, cuda or cuda:N. An observation of TOKENS rows in bf16 is added to a Gram of each WIDTH: from the memory of the device,
//! where blocks leave it, and with others behind it, as a denoising step of a batch has them. `parts` says how long each part of it takes a
//! GPU alone: to judge whether it may be added, to form its products and to add these; and how long the whole product X^T X takes. It does the
//! parts side by side, so their sum may be more than the whole. `tuning` says how long an observation takes by panels of some numbers of rows,
//! each added by some numbers of blocks of threads, and `over_whole_product` what share of the whole product's time that is. Each linear of
//! ROWS x WIDTH is pruned to half of its weights, by alternating directions with refinement and by OBS; that includes what its site's Gram is
//! factorised for, which `inverses_seconds` says of alternating directions. Linears lie on the host before and after, and Grams in the memory
//! of the device. Their `parts` are, by alternating directions on a GPU, the factors of all penalties, the inverses from them, all products of
//! a linear, and its copies; the rest of the whole goes to masks and to what lies between products. `-` stands for no width, and for no linear.
//! `operations` are those that `obsdiff plan` counts for it, and `rates` the operations a second of the device's products by their type.
//!
//! Each FOLDER holds the `config.json` of a transformer. One block of each of its kinds is computed in bf16, with random weights: for BATCH
//! pictures of SIDE x SIDE latent pixels and TEXT tokens. Seconds are those of the fastest of several rounds, and `transfers` what has crossed
//! in it between the host's memory and the device's, by kind; of blocks in all of its runs, before somebody waits for the last one.

mod blocks;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use obsdiff::clock::Clock;
use obsdiff::machine::product_rate;
use obsdiff_core::assignment::SolveCost;
use obsdiff_engine::device::transfers::Transfers;
use obsdiff_engine::device::{ComputeDevice, DeviceName, PartTimes};
use obsdiff_engine::gram::{Gram, GramSet, PlacedGram};
use obsdiff_engine::model::Matrix;
use obsdiff_engine::solve::{Factor, Obs, SiteSettings, SiteSolver, stride};
use obsdiff_proto::{Accumulate, Effort, Precision, SiteId, SparsitySpec, Target};
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
/// Observations that are added one after another without a wait: a denoising step has several for each block.
const OBSERVATIONS: u32 = 32;
/// Rows of panels and blocks of threads that add each of them, of which all pairs are tried.
const PANELS: [usize; 4] = [256, 512, 768, 1024];
const BLOCKS: [usize; 4] = [8, 16, 24, 48];

/// All that the arguments ask for.
pub(crate) fn measured(arguments: &[String]) -> Result<Value> {
    let [device, tokens, widths, linears, blocks @ ..] = arguments else { anyhow::bail!(USAGE) };
    let name: DeviceName = device.parse()?;
    let (device, tokens) = (ComputeDevice::open(name)?, tokens.parse().context(USAGE)?);
    let mut grams = Vec::new();
    for width in listed(widths) {
        let width = width.parse().context(USAGE)?;
        let rows = device.matrix(&observation(tokens, width)?)?;
        let (_, Timed { seconds, transfers }) = observed(&device, device.grams(), tokens, width)?;
        let parts = timed_parts(|| device.observation_times(&rows, EXPONENT, OBSERVATIONS))?;
        let whole = parts["whole_product_seconds"].as_f64();
        let tuning = tuned(&device, &rows, width, whole)?;
        grams.push(json!({
            "tokens": tokens,
            "width": width,
            "seconds": seconds,
            "over_whole_product": whole.map(|whole| seconds / whole),
            "operations": tokens * width * (width + 1),
            "transfers": transfers,
            "tuning": tuning,
            "parts": parts,
        }));
    }
    let mut solves = Vec::new();
    for linear in listed(linears) {
        let (rows, width) = linear.split_once('x').context(USAGE)?;
        solves.push(solved(&device, tokens, rows.parse().context(USAGE)?, width.parse().context(USAGE)?)?);
    }
    let blocks = blocks.iter().map(|call| blocks::computed(&device, call)).collect::<Result<Vec<_>>>()?;
    let blocks = blocks.concat();
    let start = Instant::now();
    let clock: Clock = Arc::new(move || start.elapsed());
    let mut rates = BTreeMap::new();
    for (name, numbers) in [("f32", DType::F32), ("bf16", DType::BF16)] {
        rates.insert(name, product_rate(&device, numbers, &clock)?);
    }
    Ok(json!({
        "device": name.to_string(),
        "hardware": device.hardware(),
        "rates": rates,
        "grams": grams,
        "solves": solves,
        "blocks": blocks,
    }))
}

/// What an argument lists; `-` lists nothing.
fn listed(argument: &str) -> impl Iterator<Item = &str> {
    argument.split(',').filter(|listed| *listed != "-")
}

/// The fastest round of some work: how long it took, and what crossed between the host and the device.
struct Timed {
    seconds: f64,
    transfers: Transfers,
}

/// Noise that a site observes.
fn observation(tokens: usize, width: usize) -> Result<Tensor> {
    let rows = Tensor::from_vec(noise(1, tokens * width), (tokens, width), &Device::Cpu)?;
    Ok(rows.to_dtype(DType::BF16)?)
}

/// A Gram of noise, and how long it takes to add an observation.
fn observed(
    device: &ComputeDevice,
    mut grams: Box<dyn GramSet>,
    tokens: usize,
    width: usize,
) -> Result<(PlacedGram, Timed)> {
    let rows = observation(tokens, width)?;
    let there = device.matrix(&rows)?;
    let host: Vec<f32> = rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    grams.open(SITE, &Arc::new(Gram::new(width, Accumulate::Exact, EXPONENT)))?;
    let mut timed = fastest(device, || {
        for _ in 0..OBSERVATIONS {
            // The processor takes rows as f32.
            if !grams.observe_in_place(SITE, &there, 1.0)? {
                grams.observe(SITE, &host, 1.0)?;
            }
        }
        // A GPU is done later.
        grams.settle().map_err(|(_, problem)| problem)?;
        Ok(())
    })?;
    timed.seconds /= f64::from(OBSERVATIONS);
    Ok((grams.share(SITE)?.context("the Gram is not open")?, timed))
}

/// How long it takes a GPU to add an observation by other panels, each added by other numbers of blocks.
fn tuned(device: &ComputeDevice, rows: &Matrix, width: usize, whole: Option<f64>) -> Result<Vec<Value>> {
    let (empty, mut tuned) = (Arc::new(Gram::new(width, Accumulate::Exact, EXPONENT)), Vec::new());
    for (panel, blocks) in PANELS.into_iter().flat_map(|panel| BLOCKS.map(|blocks| (panel, blocks))) {
        let Some(height) = NonZeroUsize::new(panel).filter(|height| height.get() < width) else { break };
        let Some(mut grams) = device.grams_by_panels(height, NonZeroUsize::new(blocks)) else { break };
        grams.open_empty(SITE, &empty)?;
        let Timed { seconds, .. } = fastest(device, || {
            for _ in 0..OBSERVATIONS {
                grams.observe_in_place(SITE, rows, 1.0)?;
            }
            grams.settle().map_err(|(_, problem)| problem)?;
            Ok(())
        })?;
        let seconds = seconds / f64::from(OBSERVATIONS);
        let over = whole.map(|whole| seconds / whole);
        tuned
            .push(json!({ "rows": panel, "blocks": blocks, "seconds": seconds, "over_whole_product": over }));
    }
    Ok(tuned)
}

/// How long it takes to prune a linear in either way.
fn solved(device: &ComputeDevice, tokens: usize, rows: usize, width: usize) -> Result<Value> {
    let (gram, _) = observed(device, device.grams(), tokens, width)?;
    let packed = gram.packed();
    // The processor takes the square of sums.
    let upper = match packed {
        Some(_) => Vec::new(),
        None => gram.to_host()?.to_upper(stride(width)),
    };
    let weight = noise(2, rows * width);
    let begin = |solver: &mut dyn SiteSolver, settings: SiteSettings| -> Result<f64> {
        Ok(match &packed {
            Some(packed) => solver.begin_in_place(packed, settings).context("the Gram is out of reach")??,
            None => solver.begin(width, upper.clone(), settings)?,
        })
    };
    let by = |solver: &mut dyn SiteSolver, settings: SiteSettings| {
        fastest(device, || {
            begin(solver, settings)?;
            for solved in solver.solve(&[(&weight, HALF)]) {
                solved?;
            }
            Ok(())
        })
    };
    let mut solver = device.solver();
    solver.reserve(SETTINGS.effort, width, weight.len());
    let Timed { seconds, transfers } = by(&mut *solver, SETTINGS)?;
    let begun = fastest(device, || begin(&mut *solver, SETTINGS).map(drop))?;
    drop(solver);
    let parts = timed_parts(|| device.solve_times(&gram, &weight, SETTINGS))?;
    let obs = match device.obs_solver(SETTINGS.damping) {
        Some(mut solver) => by(&mut *solver, SiteSettings { refinement: 0, ..SETTINGS })?,
        None => fastest(device, || {
            let factor = Factor::new(width, upper.clone(), SETTINGS.damping)?;
            Ok(Obs::default().prune(&mut weight.clone(), &factor, &HALF)?)
        })?,
    };
    Ok(json!({
        "rows": rows,
        "width": width,
        "seconds": seconds,
        "inverses_seconds": begun.seconds,
        "parts": parts,
        "operations": SolveCost::of(&by_admm()?).operations(width, rows),
        "transfers": transfers,
        "obs_seconds": obs.seconds,
        "obs_operations": SolveCost::sweep(0).operations(width, rows),
        "obs_transfers": obs.transfers,
    }))
}

/// What a job says that prunes as [`SETTINGS`] do.
fn by_admm() -> Result<SparsitySpec> {
    let SiteSettings { effort, refinement, .. } = SETTINGS;
    let spec = json!({ "pattern": "unstructured", "ratio": 0.5, "method": "admm", "effort": effort, "refine": refinement });
    Ok(serde_json::from_value(spec)?)
}

/// The fastest of several rounds of each part, in seconds, under its name with `_seconds` behind it; null where nothing is timed.
fn timed_parts<E>(mut time: impl FnMut() -> Result<Option<PartTimes>, E>) -> Result<Value, E> {
    let mut fastest: Option<PartTimes> = None;
    for _ in 0..ROUNDS {
        let Some(times) = time()? else { break };
        let fastest = fastest.get_or_insert_with(|| times.clone());
        for (part, took) in times {
            if let Some(least) = fastest.get_mut(part) {
                *least = took.min(*least);
            }
        }
    }
    let seconds = |parts: PartTimes| -> Value {
        parts.into_iter().map(|(part, took)| (format!("{part}_seconds"), took.as_secs_f64())).collect()
    };
    Ok(fastest.map_or(Value::Null, seconds))
}

fn fastest(device: &ComputeDevice, mut work: impl FnMut() -> Result<()>) -> Result<Timed> {
    let mut fastest = Timed { seconds: f64::INFINITY, transfers: Transfers::default() };
    for _ in 0..ROUNDS {
        let (before, start) = (device.transfers(), Instant::now());
        work()?;
        let seconds = start.elapsed().as_secs_f64();
        if seconds < fastest.seconds {
            fastest = Timed { seconds, transfers: device.transfers().since(&before) };
        }
    }
    Ok(fastest)
}
