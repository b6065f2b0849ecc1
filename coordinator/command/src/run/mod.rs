//! The main job: a pipeline and prompts in, a pruned pipeline out.

mod baseline;
mod course;
mod dense;
mod display;
mod finished;
mod free_space;
mod grams;
pub(crate) mod held_out;
mod inputs;
mod local;
mod output;
mod places;
mod state;
mod summary;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use candle_core::Tensor;
use obsdiff_coordinator::{JobState, Outlook};
use obsdiff_engine::calibrate::{Denoised, Trajectories};
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::export::{Baseline, HeldOutError, Measured, PruningRecord};
use obsdiff_engine::pipeline::Picture;
use obsdiff_files::Disk;
use obsdiff_proto::ByteSize;
use obsdiff_store::JobStore;
use obsdiff_worker::conditioning::{ConditioningObjects, StoredConditionings, encode_missing, put_missing};
use obsdiff_worker::grams::JobGrams;
use obsdiff_worker::preparation::{self, compute_type};
use obsdiff_worker::pruning_job::{JobOutput, PruningJob, known_texts};
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::described::unprepared;
use crate::job::JobFile;
use crate::progress::Progress;
use crate::report::OutputDocuments;
use crate::sampling::{encoding, load_transformer};
use crate::shares::ProductShares;
use crate::spans::{SpanReport, Spans};
use crate::traces::{RunningTrace, TraceSettings};
use crate::{Error, Result};

pub(crate) use course::recorded;
pub use dense::DenseSamples;
pub use display::{Display, PhaseDisplay};
pub(crate) use finished::already_done;
pub(crate) use free_space::shortage;
pub(crate) use grams::{check_kept, claim as claim_grams};
pub use inputs::Inputs;
pub use obsdiff_worker::pruning_job::peak_resident;
pub(crate) use output::{output_of, settle as settle_output};
pub use state::open_state;
pub(crate) use state::written_record;
pub(crate) use state::{is_left_over, location, note};
pub use summary::Summary;
use workers::run_workers;

/// The span in which all of a run's work happens, on each thread that does a part of it.
pub const RUN_SPAN: &str = "run";

/// What a process gives to a run.
pub struct RunContext<'a> {
    /// Workers that share its threads; as many as [`Inputs::workers_for`] says where this is absent.
    pub workers: Option<usize>,
    /// The memory they may take together, where it is known.
    pub memory: Option<ByteSize>,
    /// The least time between two times at which a worker saves its sums in the job's state; none where it never does.
    pub save_every: Option<Duration>,
    /// Whether the dense model is pruned by magnitude, too, to compare with.
    pub baseline: bool,
    /// Where progress is shown.
    pub progress: &'a Progress,
    /// The account of where the time goes.
    pub spans: &'a Spans,
    /// What the output and the job's state are written and removed by.
    pub disk: &'a Disk,
    /// Where prompts are encoded, blocks computed, Grams summed and linears solved.
    pub device: &'a ComputeDevice,
    /// Where it is shown how far the job is, if somebody wants to know.
    pub outlook: Option<&'a watch::Sender<Outlook>>,
    /// What the dense model made of the held-out prompts of the last run.
    pub dense: &'a DenseSamples,
    /// Where traces of the job go, if anywhere, and what ends them where the process is stopped.
    pub traces: Option<(&'a TraceSettings, &'a RunningTrace)>,
}

/// Runs a job in this process: checks everything, then encodes, calibrates, prunes, exports and compares. The result does not depend on
/// the number of workers.
///
/// # Errors
/// Bad input, before any work; a failure of the engine later. Nothing half-written is left behind.
pub fn run(job: &JobFile, process: &RunContext<'_>) -> Result<Summary> {
    let &RunContext { memory, progress, spans, disk, device, .. } = process;
    let root = tracing::info_span!(RUN_SPAN);
    let running = root.enter();
    let available = available_memory(device)?;
    let mut inputs = Inputs::open_on(job, process.workers.unwrap_or(1), memory, available)?;
    let workers = process.workers.unwrap_or_else(|| inputs.workers_for(job, memory, device));
    if let Some(finished) = inputs.finished.take() {
        let record = if process.baseline { finished.with_baseline()? } else { finished.record() };
        progress.note(&already_done(job));
        progress.written(&job.spec.output.path);
        if let Some(outlook) = process.outlook {
            outlook.send_replace(all_done(&inputs));
        }
        let predicted = inputs.predicted_peak(job, workers);
        return Ok(Summary::new(record, SpanReport::default(), predicted, &inputs.described.pipeline));
    }
    if process.baseline {
        baseline::check(job, &inputs)?;
    }
    for note in inputs.prompts.note.iter().chain(&job.note()) {
        progress.note(note);
    }
    if let Some(note) = inputs.kept.as_deref().and_then(|kept| grams::note(kept, &device.hardware())) {
        progress.note(&note);
    }
    progress.expect_work(inputs.work(job, &ProductShares::of(device)?));
    let state = open_state(job, &inputs)?;
    state::check_hardware(&state, job, &device.hardware())?;
    note(&state, progress);
    let save_every = free_space::save_period(job, &inputs, workers, (process.save_every, progress))?;
    progress.keep(state.job.committed as usize, inputs.plan.packages.len(), state.url());
    let output = output_of(job, state.runtime().handle())?;
    drop(running);
    let finished = match written_record(&output).filter(|_| is_left_over(&state, &inputs)) {
        Some(record) => {
            if let Some(outlook) = process.outlook {
                outlook.send_replace(all_done(&inputs));
            }
            settle_output(job, &state).map(|()| (record, spans.report()))
        }
        None => {
            let process = (process, workers, save_every);
            grams::claim(job, &state).and_then(|()| prune(job, &inputs, (&state, &output), process, &root))
        }
    };
    match finished {
        Ok((record, spans)) => {
            progress.written(&job.spec.output.path);
            state.remove(disk);
            let predicted = inputs.predicted_peak(job, workers);
            Ok(Summary::new(record, spans, predicted, &inputs.described.pipeline))
        }
        Err(error) => Err(state::after(job, state, error, disk)),
    }
}

/// The outlook of a job whose output is written.
fn all_done(inputs: &Inputs) -> Outlook {
    let packages = inputs.plan.packages.len() as u32;
    Outlook { end: None, done: 1.0, committed: packages, packages }
}

/// What this process can get of a device's own memory; none where it works in the host's.
///
/// # Errors
/// When the driver fails.
pub(crate) fn available_memory(device: &ComputeDevice) -> Result<Option<ByteSize>> {
    let memory = device.memory().map_err(|problem| Error::key("--device", problem.to_string()))?;
    Ok(memory.map(|memory| ByteSize(memory.available())))
}

/// The pruned model beside the dense one.
#[derive(Default)]
struct HeldOutComparison {
    error: Option<HeldOutError>,
    /// What magnitude pruning makes of the dense one.
    baseline: Option<Baseline>,
    /// Pictures of the first held-out prompts, by the dense and the pruned model.
    pictures: [Vec<Picture>; 2],
}

/// How far the latents and pictures of the pruned model, as it was written, are from the dense one's, where those are known, and what
/// magnitude pruning makes of it, where that is asked for.
fn compared(
    job: &JobFile,
    output: &JobOutput,
    trajectories: &Arc<Trajectories>,
    inputs: &Inputs,
    dense: Option<&Denoised>,
    (process, peak): (&RunContext<'_>, ByteSize),
) -> Result<HeldOutComparison> {
    let Some(dense) = dense else { return Ok(HeldOutComparison::default()) };
    let progress = process.progress;
    let pruned = {
        let written = output.open_written(inputs.described.pipeline.path())?;
        let pruned = load_transformer(&written.pipeline, compute_type(job.spec.model.dtype), process.device)?;
        let batched = (inputs, job.spec.calibration.shard_size);
        held_out::denoised(&*pruned, trajectories, batched, "sample the output", progress)?
    };
    let Some(pruned) = pruned else { return Ok(HeldOutComparison::default()) };
    let mut error =
        HeldOutError::between(&dense.latents, &pruned.latents)?.along(&dense.steps, &pruned.steps)?;
    let mut baseline = if process.baseline {
        baseline::prune(job, inputs, trajectories, dense, (process.device, progress))?
    } else {
        None
    };
    let latents =
        [Some(&dense.latents), Some(&pruned.latents), baseline.as_ref().map(|(_, latents)| latents)];
    let latents: Vec<&Tensor> = latents.into_iter().flatten().collect();
    // The job is done by now, and does not fail for a picture.
    let pictures = held_out::pictures(&inputs.described.pipeline, &latents, (process.device, peak))
        .unwrap_or_else(|error| {
            progress.note(&format!("pictures are not compared: {}", error.line()));
            Vec::new()
        });
    let mut pictures = pictures.into_iter();
    let of_dense = pictures.next().unwrap_or_default();
    let others: Vec<_> = pictures.collect();
    let errors = [Some(&mut error), baseline.as_mut().map(|(baseline, _)| &mut baseline.held_out)];
    for (error, pictures) in errors.into_iter().flatten().zip(&others) {
        error.pictures = Some(held_out::picture_error(&of_dense, pictures));
    }
    Ok(HeldOutComparison {
        error: Some(error),
        baseline: baseline.map(|(baseline, _)| baseline),
        pictures: [of_dense, others.into_iter().next().unwrap_or_default()],
    })
}

/// Prunes, compares, and adds to the record what was measured. The time is that until then.
fn prune(
    job: &JobFile,
    inputs: &Inputs,
    (state, output): (&JobState, &JobOutput),
    (process, workers, save_every): (&RunContext<'_>, usize, Option<Duration>),
    root: &tracing::Span,
) -> Result<(PruningRecord, SpanReport)> {
    let &RunContext { progress, spans, disk, device, .. } = process;
    let peak = inputs.predicted_peak(job, workers);
    let running = root.enter();
    let place = (state.store(), state.runtime().handle());
    let conditionings = encode(job, inputs, place, device, progress)?;
    let (mut model, trajectories) =
        preparation::load(&job.spec, inputs.described.model(), &inputs.weights, conditionings)?;
    model.move_blocks(device);
    let batched = (inputs, job.spec.calibration.shard_size);
    let dense = process.dense.of((job, inputs, device.hardware()), || {
        held_out::denoised(&*model, &trajectories, batched, "sample the source", progress)
    })?;
    // The workers' threads account for their time themselves.
    drop(running);
    let grams = grams::open(job, inputs, (device, state.runtime().handle()))?;
    let documents = OutputDocuments::new(&job.spec, inputs, (device, peak), spans.clock().clone());
    let latents = dense.as_ref().map(|dense| &dense.latents);
    let work = work((job, inputs), &trajectories, latents, (grams, output, disk), &documents, device);
    let traces = process.traces.map(|(traces, running)| {
        let begun = traces.begin(&job.spec.model.path, state.runtime().handle())?;
        running.begin(&begun);
        Ok::<_, Error>(begun)
    });
    let shown = (progress, process.outlook, traces.transpose()?);
    let (engine, course) =
        run_workers(&work, (job, inputs), state, model, (workers, save_every), shown, spans.clock().clone())?;
    let _running = root.enter();
    let (mut record, _) = work.record(&engine.pruned())?;
    let expected_velocity_error = engine.expected_velocity_error();
    // Its model makes room for the one that was written.
    drop(engine);
    device.release_unused()?;
    let HeldOutComparison { error, baseline, pictures } =
        compared(job, output, &trajectories, inputs, dense.as_ref(), (process, peak))?;
    let report = spans.report();
    record.measured = Some(Measured {
        held_out: error,
        baseline,
        expected_velocity_error,
        seconds: report.whole.as_secs_f64(),
        other_seconds: report.other.as_secs_f64(),
        phases: report.phases(),
        peak_memory_bytes: peak_resident().map(|peak| peak.0),
        course: Some(recorded(&course, job, inputs, output)),
    });
    let files = documents.of(&record, pictures);
    Ok((output.replace(&record, &files, disk)?, report))
}

/// Sees that the conditioning of every prompt is in the job's store, and opens it there. Prompts are encoded on the device.
///
/// # Errors
/// When a text encoder cannot be used, the device has no room for it, or the store fails.
pub(crate) fn encode(
    job: &JobFile,
    inputs: &Inputs,
    (store, runtime): (&JobStore, &Handle),
    device: &ComputeDevice,
    progress: &Progress,
) -> Result<StoredConditionings> {
    let (spec, model, prompts) = (&job.spec, inputs.described.model(), inputs.prompts.recorded());
    let texts = prompts.all();
    let files = (&*inputs.model_files, &*inputs.prompt_files);
    let objects = ConditioningObjects::needed(spec, files, &prompts, inputs.kept.as_deref())
        .map_err(|error| unprepared(job, error))?;
    let place = (store, runtime);
    encoding(texts.len(), progress, |on_encoded| {
        let done = match &inputs.conditioning {
            Some(file) => put_missing(spec, model, (&objects, &texts), file, place, on_encoded),
            None => encode_missing(spec, model, &objects, &texts, place, device, on_encoded),
        };
        done.map_err(|e| unprepared(job, e))
    })?;
    Ok(StoredConditionings::open(spec, model, objects, store, runtime.clone())?)
}

/// What the workers of this process share. Final latents of the dense model are `dense`, where they are known.
fn work<'a>(
    (job, inputs): (&'a JobFile, &'a Inputs),
    trajectories: &'a Arc<Trajectories>,
    dense: Option<&'a Tensor>,
    (grams, output, disk): (JobGrams, &JobOutput, &'a Disk),
    documents: &'a OutputDocuments<'a>,
    device: &ComputeDevice,
) -> PruningJob<'a> {
    PruningJob {
        spec: &job.spec,
        held_out: known_texts(&job.spec, &inputs.prompts.held_out),
        model: inputs.described.model(),
        source: job,
        weights: &inputs.weights,
        plan: &inputs.plan,
        inputs: inputs.digests(),
        trajectories,
        dense,
        keeper: grams.keeper,
        grams: grams.kept,
        measuring: None,
        describe: documents,
        output: output.clone(),
        disk,
        device: device.clone(),
    }
}
