//! The main job: a pipeline and prompts in, a pruned pipeline out.

mod held_out;
mod inputs;
mod memory;
mod packages;
mod summary;

use std::path::Path;

use candle_core::Device;
use obsdiff_engine::calibrate::Trajectories;
use obsdiff_engine::export::{Export, PruningRecord};
use obsdiff_engine::model::sd3::Sd3Transformer;
use obsdiff_engine::pruner::Pruner;

use crate::Result;
use crate::described::compute_type;
use crate::job::Job;
use crate::progress::Progress;
use crate::sampling::encode;
use crate::spans::Spans;

pub use held_out::HeldOutError;
pub use inputs::Inputs;
pub use memory::peak_resident;
pub use summary::Summary;

/// The span in which all of a run's work happens.
pub const RUN_SPAN: &str = "run";

/// Runs a job in this process: checks everything, then encodes, calibrates, prunes, exports and compares.
///
/// # Errors
/// Bad input, before any work; a failure of the engine later. Nothing half-written is left behind.
pub fn run(job: &Job, progress: &Progress, spans: &Spans) -> Result<Summary> {
    let root = tracing::info_span!(RUN_SPAN);
    let _root = root.enter();
    let inputs = Inputs::open(job)?;
    if let Some(note) = &inputs.prompts.note {
        progress.note(note);
    }
    let mut pruner = prepare(job, &inputs, progress)?;
    let dense = held_out::latents(&pruner, &inputs, "dense", progress)?;
    let linears = packages::prune(&mut pruner, &inputs, progress)?;
    // Only here: calibration names the site at which a model overflows, but not every method calibrates.
    held_out::check_finite(dense.as_ref(), &inputs)?;
    let record = PruningRecord {
        obsdiff: env!("CARGO_PKG_VERSION").to_owned(),
        job: job.spec.clone(),
        inputs: inputs.digests.clone(),
        linears,
    };
    export(job, &inputs, &pruner, &record)?;
    let held_out = match dense {
        Some(dense) => {
            let pruned = held_out::latents(&pruner, &inputs, "pruned", progress)?;
            pruned.map(|pruned| HeldOutError::between(&dense, &pruned)).transpose()?
        }
        None => None,
    };
    drop(_root);
    let predicted = inputs.predicted_peak(job);
    Ok(Summary { record, held_out, spans: spans.report(), predicted, peak_resident: peak_resident() })
}

fn prepare(job: &Job, inputs: &Inputs, progress: &Progress) -> Result<Pruner> {
    let (pipeline, calibration) = (&inputs.described.pipeline, &job.spec.calibration);
    let dtype = compute_type(job.spec.model.dtype);
    // Those that calibrate have the ids from 0 on; those held out follow.
    let prompts = &inputs.prompts;
    let prompts: Vec<&str> =
        prompts.calibration.iter().chain(&prompts.held_out).map(String::as_str).collect();
    let encoded = encode(pipeline, &prompts, calibration.max_sequence_length as usize, progress)?
        .to(dtype, &Device::Cpu)?;
    let model = {
        let _span = tracing::info_span!("load weights").entered();
        Sd3Transformer::load(inputs.described.config.clone(), &inputs.weights, dtype, &Device::Cpu)?
    };
    let size = inputs.described.size;
    let schedule = pipeline.scheduler()?.schedule(calibration.steps as usize, size.tokens)?;
    let trajectories = Trajectories::new(schedule, calibration.guidance, calibration.seed, size, encoded);
    Ok(Pruner::new(&job.spec, Box::new(model), trajectories))
}

fn export(job: &Job, inputs: &Inputs, pruner: &Pruner, record: &PruningRecord) -> Result<()> {
    let _span = tracing::info_span!("export").entered();
    let pruned: std::collections::HashMap<String, _> = inputs
        .plan
        .packages
        .iter()
        .flat_map(|package| &package.linears)
        .map(|target| {
            (format!("{}.weight", inputs.described.inventory.linear(target.linear).name), target.linear)
        })
        .collect();
    let export = Export {
        source: inputs.described.pipeline.path(),
        destination: Path::new(&job.spec.output.path),
        link: job.spec.output.link,
        weights: &inputs.weights,
        record,
    };
    export
        .write(&|name| pruned.get(name).map(|linear| pruner.model().weight(*linear).cloned()).transpose())?;
    Ok(())
}
