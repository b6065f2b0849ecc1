//! The main job: a pipeline and prompts in, a pruned pipeline out.

mod display;
mod held_out;
mod inputs;
mod local;
mod memory;
mod places;
mod state;
mod summary;
mod workers;

use std::sync::Arc;

use candle_core::Tensor;
use obsdiff_coordinator::JobState;
use obsdiff_engine::calibrate::Trajectories;
use obsdiff_engine::export::PruningRecord;
use obsdiff_engine::model::DiffusionModel;
use obsdiff_files::Disk;
use obsdiff_proto::ByteSize;
use obsdiff_store::JobStore;
use obsdiff_worker::conditioning::{
    ConditioningObjects, StoredConditionings, encode_missing, made_by, put_missing,
};
use obsdiff_worker::preparation;
use obsdiff_worker::work::Work;
use tokio::runtime::Handle;

use crate::described::unprepared;
use crate::job::JobFile;
use crate::progress::Progress;
use crate::sampling::encoding;
use crate::spans::Spans;
use crate::{Error, Result};

pub use display::{Display, PhaseDisplay};
pub use held_out::HeldOutError;
pub use inputs::Inputs;
pub use memory::peak_resident;
pub use state::open_state;
use state::written_record;
pub(crate) use state::{is_left_over, location, note};
pub use summary::Summary;
use workers::run_workers;

/// The span in which all of a run's work happens, on each thread that does a part of it.
pub const RUN_SPAN: &str = "run";

/// What a process gives to a run.
pub struct RunContext<'a> {
    /// Workers that share its threads.
    pub workers: usize,
    /// The memory they may take together, where it is known.
    pub memory: Option<ByteSize>,
    /// Where progress is shown.
    pub progress: &'a Progress,
    /// The account of where the time goes.
    pub spans: &'a Spans,
    /// What the output and the job's state are written and removed by.
    pub disk: &'a Disk,
}

/// Runs a job in this process: checks everything, then encodes, calibrates, prunes, exports and compares. The result does not depend on
/// the number of workers.
///
/// # Errors
/// Bad input, before any work; a failure of the engine later. Nothing half-written is left behind.
pub fn run(job: &JobFile, process: &RunContext<'_>) -> Result<Summary> {
    let &RunContext { workers, memory, progress, spans, disk } = process;
    let root = tracing::info_span!(RUN_SPAN);
    let running = root.enter();
    let inputs = Inputs::open(job, workers, memory)?;
    if let Some(note) = &inputs.prompts.note {
        progress.note(note);
    }
    let state = open_state(job, &inputs)?;
    state::check_hardware(&state, job)?;
    note(&state, progress);
    progress.keep(state.job.committed as usize, inputs.plan.packages.len(), state.url());
    drop(running);
    let summary = |record, held_out| {
        let predicted = inputs.predicted_peak(job, workers);
        Summary { record, held_out, spans: spans.report(), predicted, peak_resident: peak_resident() }
    };
    if let Some(record) = written_record(job).filter(|_| is_left_over(&state, &inputs)) {
        progress.written(&job.spec.output.path);
        state.remove(disk);
        return Ok(summary(record, None));
    }
    let pruned = prune(job, &inputs, &state, process, &root);
    let (record, held_out) = match pruned {
        Ok(pruned) => {
            progress.written(&job.spec.output.path);
            state.remove(disk);
            pruned
        }
        Err(error) => return Err(state::after(state, error, disk)),
    };
    Ok(summary(record, held_out))
}

/// How far the pruned model's latents are from the dense one's, where those are known.
fn compared(
    pruned: &dyn DiffusionModel,
    trajectories: &Arc<Trajectories>,
    inputs: &Inputs,
    dense: Option<&Tensor>,
    progress: &Progress,
) -> Result<Option<HeldOutError>> {
    let Some(dense) = dense else { return Ok(None) };
    let latents = held_out::latents(pruned, trajectories, inputs, "pruned", progress)?;
    latents.map(|latents| HeldOutError::between(dense, &latents)).transpose()
}

/// Prunes and compares.
fn prune(
    job: &JobFile,
    inputs: &Inputs,
    state: &JobState,
    process: &RunContext<'_>,
    root: &tracing::Span,
) -> Result<(PruningRecord, Option<HeldOutError>)> {
    let &RunContext { workers, progress, spans, disk, .. } = process;
    let running = root.enter();
    let conditionings = encode(job, inputs, (state.store(), state.runtime().handle()), progress)?;
    let (model, trajectories) =
        preparation::load(&job.spec, inputs.described.model(), &inputs.weights, conditionings)?;
    let dense = held_out::latents(&*model, &trajectories, inputs, "dense", progress)?;
    // The workers' threads account for their time themselves.
    drop(running);
    let work = work(job, inputs, &trajectories, dense.as_ref(), disk);
    let engine = run_workers(&work, (job, inputs), state, model, workers, progress, spans.clock())?;
    let _running = root.enter();
    let held_out = compared(engine.pruner().model(), &trajectories, inputs, dense.as_ref(), progress)?;
    let (record, _) = work.record(&engine.pruned())?;
    Ok((record, held_out))
}

/// Sees that the conditioning of every prompt is in the job's store, and opens it there.
///
/// # Errors
/// When a text encoder cannot be used, or the store fails.
pub(crate) fn encode(
    job: &JobFile,
    inputs: &Inputs,
    (store, runtime): (&JobStore, &Handle),
    progress: &Progress,
) -> Result<StoredConditionings> {
    let (spec, model, prompts) = (&job.spec, inputs.described.model(), &inputs.prompts);
    // Those that calibrate have the ids from 0 on; those held out follow.
    let texts: Vec<&str> = prompts.calibration.iter().chain(&prompts.held_out).map(String::as_str).collect();
    let made_by = made_by(spec, &inputs.model_files, &inputs.prompt_files);
    let objects = ConditioningObjects::new(spec, made_by, &prompts.calibration, &prompts.held_out)
        .map_err(|e| Error::content(job.path(), format!("has prompts that cannot be named: {e}")))?;
    let place = (store, runtime);
    encoding(texts.len(), progress, |on_encoded| {
        let done = match &inputs.conditioning {
            Some(file) => put_missing(spec, model, (&objects, &texts), file, place, on_encoded),
            None => encode_missing(spec, model, &objects, &texts, place, on_encoded),
        };
        done.map_err(|e| unprepared(job, e))
    })?;
    Ok(StoredConditionings::open(spec, model, objects, store, runtime.clone())?)
}

/// What the workers of this process share. Final latents of the dense model are `dense`, where they are known.
pub(crate) fn work<'a>(
    job: &'a JobFile,
    inputs: &'a Inputs,
    trajectories: &'a Arc<Trajectories>,
    dense: Option<&'a Tensor>,
    disk: &'a Disk,
) -> Work<'a> {
    Work {
        spec: &job.spec,
        model: inputs.described.model(),
        weights: &inputs.weights,
        plan: &inputs.plan,
        inputs: inputs.digests(),
        trajectories,
        dense,
        disk,
    }
}
