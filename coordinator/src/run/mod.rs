//! The main job: a pipeline and prompts in, a pruned pipeline out.

mod held_out;
mod inputs;
mod memory;
mod packages;
mod summary;

use std::path::Path;

use candle_core::{DType, Device};
use obsdiff_engine::calibrate::Trajectories;
use obsdiff_engine::export::{Export, PruningRecord};
use obsdiff_engine::model::sd3::Sd3Transformer;
use obsdiff_engine::pipeline::Conditioning;
use obsdiff_engine::pruner::Pruner;
use obsdiff_proto::ComputeType;

use crate::job::Job;
use crate::progress::Progress;
use crate::spans::Spans;
use crate::{Error, Result};

pub use held_out::{HeldOutError, relative_l2};
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
    let dense = held_out::final_latents(&pruner, &inputs, progress, "held-out, dense")?;
    let linears = packages::prune(&mut pruner, &inputs, progress)?;
    let record = PruningRecord {
        obsdiff: env!("CARGO_PKG_VERSION").to_owned(),
        job: job.spec.clone(),
        inputs: inputs.digests.clone(),
        linears,
    };
    export(job, &inputs, &pruner, &record)?;
    let held_out = match dense {
        Some(dense) => {
            let pruned = held_out::final_latents(&pruner, &inputs, progress, "held-out, pruned")?;
            pruned.map(|pruned| HeldOutError::between(&dense, &pruned)).transpose()?
        }
        None => None,
    };
    drop(_root);
    Ok(Summary { record, held_out, spans: spans.report(), peak_resident: peak_resident() })
}

fn prepare(job: &Job, inputs: &Inputs, progress: &Progress) -> Result<Pruner> {
    let device = Device::Cpu;
    let dtype = match job.spec.model.dtype {
        ComputeType::F32 => DType::F32,
        ComputeType::Bf16 => DType::BF16,
        ComputeType::F16 => DType::F16,
    };
    let (conditionings, negative) = encode(job, inputs, dtype, progress)?;
    let model = {
        let _span = tracing::info_span!("load weights").entered();
        Sd3Transformer::load(inputs.config.clone(), &inputs.weights, dtype, &device)?
    };
    let size = inputs.size;
    let schedule = inputs.folder.scheduler()?.schedule(job.spec.calibration.steps as usize, size.tokens)?;
    let shape = [size.channels, size.height, size.width];
    let trajectories = Trajectories::new(&job.spec.calibration, schedule, shape, conditionings, negative);
    Ok(Pruner::new(&job.spec, Box::new(model), trajectories))
}

/// Encodes every prompt of the job once: those that calibrate, then those held out, then the empty negative.
fn encode(
    job: &Job,
    inputs: &Inputs,
    dtype: DType,
    progress: &Progress,
) -> Result<(Vec<Conditioning>, Conditioning)> {
    let _span = tracing::info_span!("encode text").entered();
    let length = job.spec.calibration.max_sequence_length as usize;
    let encoders = inputs.folder.text_encoders(length, &Device::Cpu)?;
    let prompts: Vec<&str> = inputs.prompts.calibration.iter().chain(&inputs.prompts.held_out).map(String::as_str).collect();
    let with_negative: Vec<&str> = prompts.iter().copied().chain([""]).collect();
    let phase = progress.phase("text", "prompts", with_negative.len() as u64);
    let mut told = 0;
    let encoded = encoders.encode(&with_negative, &mut |done, of| {
        let reached = (with_negative.len() as u64).saturating_mul(done) / of.max(1);
        phase.advance(reached.saturating_sub(told));
        told = reached.max(told);
    })?;
    phase.finish();
    let mut encoded =
        encoded.iter().map(|one| one.to(dtype, &Device::Cpu)).collect::<obsdiff_engine::Result<Vec<_>>>()?;
    let negative = encoded.pop().ok_or_else(|| Error::content(inputs.folder.path(), "encodes no prompt"))?;
    Ok((encoded, negative))
}

fn export(job: &Job, inputs: &Inputs, pruner: &Pruner, record: &PruningRecord) -> Result<()> {
    let _span = tracing::info_span!("export").entered();
    let pruned: std::collections::HashMap<String, _> = inputs
        .plan
        .packages
        .iter()
        .flat_map(|package| &package.linears)
        .map(|target| (format!("{}.weight", inputs.inventory.linear(target.linear).name), target.linear))
        .collect();
    let export = Export {
        source: inputs.folder.path(),
        destination: Path::new(&job.spec.output.path),
        link: job.spec.output.link,
        weights: &inputs.weights,
        record,
    };
    export.write(&|name| pruned.get(name).map(|linear| pruner.weight(*linear).cloned()).transpose())?;
    Ok(())
}
