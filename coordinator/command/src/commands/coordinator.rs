//! `obsdiff coordinator JOB`.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use obsdiff_coordinator::metrics::Metrics;
use obsdiff_coordinator::{CoreDriver, DoneJob, JobState, Outlook, Port, ServedJob};
use obsdiff_core::{Failure, Outcome};
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::export::{DOCUMENT_MARK, Document, JobCourse, PruningRecord};
use obsdiff_proto::lock;
use obsdiff_proto::session::Briefing;
use obsdiff_proto::view::JobRequest;
use obsdiff_worker::pruning_job::JobOutput;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::{broadcast, watch};

use super::worker::each_gpu::{GpuWorkers, Running};
use crate::cli::CoordinatorArgs;
use crate::context::CommandContext;
use crate::job::JobFile;
use crate::kubeflow::{TrainerServer, outlook_source};
use crate::progress::Progress;
use crate::report::retimed;
use crate::run::{
    Display, Inputs, PhaseDisplay, Summary, already_done, claim_grams, encode, is_left_over, note,
    open_state, output_of, recorded, settle_output, written_record,
};
use crate::shares::ProductShares;
use crate::signals::{Answer, Signal};
use crate::spans::SpanReport;
use crate::traces::TraceSettings;
use crate::{Error, Result};

/// How long workers that stand by, or look for the coordinator, can still learn that the job is over. It is longer than the time after which
/// they ask again.
const LINGER: Duration = Duration::from_secs(4);

/// The name of the last metrics in an output.
const METRICS_FILE: &str = "metrics.prom";

/// Coordinates a job until it is done, or the process is asked to stop.
///
/// # Errors
/// Bad input, before any work; a port that cannot be bound; why the job failed.
pub(super) fn coordinate(args: &CoordinatorArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let job = context.job(&args.job)?;
    let port = args.security.port(args.listen)?;
    let summary = with_workers(&job, port, context, None)?;
    match summary {
        Some(summary) => context.print_summary(&summary, false),
        None => Ok(writeln!(context.out, "written to {}", job.spec.output.path)?),
    }
}

/// Starts workers for the coordinator at this URL, which stop as all of `Running` do.
pub(super) type StartWorkers<'a> = &'a dyn Fn(&str, &Arc<Mutex<Running>>) -> GpuWorkers;

/// Coordinates a job at a port until it is done: for the workers that come, or for those that are started here once it listens. Gives what a
/// run on one machine ends with, where the output can be seen from here.
///
/// # Errors
/// As [`coordinate`], and where all workers that were started ended before the job was done.
pub(super) fn with_workers(
    job: &JobFile,
    port: Port,
    context: &mut CommandContext<'_>,
    start: Option<StartWorkers<'_>>,
) -> Result<Option<Summary>> {
    let traces = TraceSettings::of(&context.environment)?;
    // The port is bound before any work, but accepts connections only once the job is checked.
    drop(port.bind()?);
    // Workers hold the Grams, so each of them checks whether these fit its memory.
    let mut inputs = Inputs::open(job, 0, None)?;
    let progress = context.progress();
    if let Some(finished) = inputs.finished.take() {
        progress.note(&already_done(job));
        let runtime = crate::runtime::runtime()?;
        post_done(&inputs, runtime.handle(), context);
        if start.is_none()
            && let Err(error) = tell_waiting_workers(job, &inputs, port, &runtime, context)
        {
            // The job is done whether they hear of it or not.
            progress.note(&format!("workers that wait for this job cannot be told that it is done: {error}"));
        }
        return Ok(Some(summary(finished.record(), job, &inputs)));
    }
    let listener = port.bind()?;
    for note in inputs.prompts.note.iter().chain(&job.note()) {
        progress.note(note);
    }
    // Where workers compute is not known yet.
    progress.expect_work(inputs.work(job, &ProductShares::of_processors()));
    let state = open_state(job, &inputs)?;
    note(&state, &progress);
    progress.keep(state.job.committed as usize, inputs.plan.packages.len(), state.url());
    if inputs.conditioning.is_some() {
        // Workers find it in the store: they need not have the file.
        let place = (state.store(), state.runtime().handle());
        let put = encode(job, &inputs, place, &ComputeDevice::Cpu, &progress);
        put.map_err(|error| error.after_begin(state.url()))?;
    }
    let output = output_of(job, state.runtime().handle())?;
    if inputs.written {
        settle_output(job, &state)?;
    }
    let done = if is_left_over(&state, &inputs) {
        post_done(&inputs, state.runtime().handle(), context);
        Ok(None)
    } else {
        claim_grams(job, &state).map_err(|error| error.after_begin(state.url()))?;
        drive(job, &inputs, (&state, &output), (port, listener, traces), &progress, context, start).map(Some)
    };
    match done {
        Ok(driven) => {
            progress.written(&job.spec.output.path);
            let summary = summary_of(&output, (job, &inputs), driven, context);
            state.remove(&context.disk);
            Ok(summary)
        }
        Err(error) => Err(error.after_begin(state.url())),
    }
}

/// Tells workers that still look for this coordinator that the job is done, whose output an earlier process wrote.
fn tell_waiting_workers(
    job: &JobFile,
    inputs: &Inputs,
    port: Port,
    runtime: &Runtime,
    context: &CommandContext<'_>,
) -> Result<()> {
    let listener = port.bind()?;
    let (done, handle) = DoneJob::new(context.clock.clone());
    // No worker is taken into the job, and none needs its store.
    let briefing = briefing(job, inputs, String::new())?;
    let served = ServedJob {
        handle: handle.clone(),
        request: JobRequest::of(&job.spec),
        model: job.spec.model.path.clone(),
        output: job.spec.output.path.clone(),
        clock: context.clock.clone(),
        workers_announce: false,
        outlook: watch::channel(Outlook::default()).1,
        events: broadcast::channel(1).0,
        metrics: Arc::new(Metrics::new()?),
    };
    runtime.block_on(port.serve(listener, handle.clone(), Arc::default(), briefing, served))?;
    context.signals.respond(move |_| {
        handle.stop();
        Answer::Finish
    });
    runtime.block_on(done.linger(LINGER));
    Ok(())
}

/// What each worker of the job is told, whose store is at this URL.
fn briefing(job: &JobFile, inputs: &Inputs, store: String) -> Result<Arc<Briefing>> {
    let briefing = Briefing {
        spec: job.spec.clone(),
        inventory: inputs.described.inventory.clone(),
        plan: inputs.plan.clone(),
        inputs: inputs.model_files.clone(),
        store,
    };
    briefing.check().map_err(|e| Error::content(job.path(), format!("cannot be sent to workers: {e}")))?;
    Ok(Arc::new(briefing))
}

/// Posts that the job is done, whose output an earlier process wrote: that may have been killed before it could.
fn post_done(inputs: &Inputs, runtime: &Handle, context: &CommandContext<'_>) {
    if let Some(server) = TrainerServer::of(&context.environment) {
        server.post_done(runtime, inputs.plan.packages.len() as u32);
    }
}

/// What a run on one machine ends with, whose output has this record.
fn summary(record: PruningRecord, job: &JobFile, inputs: &Inputs) -> Summary {
    let predicted = inputs.predicted_peak(job, 1);
    Summary::new(record, SpanReport::default(), predicted, &inputs.described.pipeline)
}

/// Ends as a run on one machine does, where the output can be seen from here. If this process has `driven` the job, its record says how
/// that went, and its last metrics are put beside it.
fn summary_of(
    output: &JobOutput,
    (job, inputs): (&JobFile, &Inputs),
    driven: Option<(JobCourse, String)>,
    context: &CommandContext<'_>,
) -> Option<Summary> {
    let mut record = written_record(output)?;
    if let Some((course, metrics)) = driven {
        if let Some(measured) = &mut record.measured {
            measured.seconds = (context.clock)().as_secs_f64();
            measured.course = Some(course);
        }
        // The job has its result, and does not fail because of its documents.
        let last = Document { name: METRICS_FILE, text: format!("# {DOCUMENT_MARK}\n{metrics}") };
        let documents: Vec<_> = retimed(output, &record).into_iter().chain([last]).collect();
        if let Err(error) = output.replace(&record, &documents, &context.disk) {
            tracing::warn!(%error, "how the job went is not in the record");
        }
    }
    Some(summary(record, job, inputs))
}

/// Drives the job until it is done, and gives how that went, with its last metrics. Those of a job that is not done stay in its state.
fn drive(
    job: &JobFile,
    inputs: &Inputs,
    (state, output): (&JobState, &JobOutput),
    (port, listener, traces): (Port, TcpListener, Option<TraceSettings>),
    progress: &Progress,
    context: &mut CommandContext<'_>,
    start: Option<StartWorkers<'_>>,
) -> Result<(JobCourse, String)> {
    let briefing = briefing(job, inputs, state.absolute_url().map_err(Error::System)?)?;
    let (events, _) = broadcast::channel(256);
    let steps = u64::from(job.spec.calibration.steps);
    let (send_outlook, outlook) = watch::channel(Outlook::default());
    let display = Display::new(inputs, steps, progress, Arc::new(PhaseDisplay::default()))
        .with_watchers(events.clone())
        .with_outlook(send_outlook);
    let metrics = Arc::new(Metrics::new()?);
    let traces = traces.map(|traces| traces.begin(&job.spec.model.path, state.runtime().handle()));
    let observers = (display, (metrics.clone(), traces.transpose()?));
    let records = Box::new(state.records());
    let (mut driver, handle) =
        CoreDriver::new(state.job.clone(), records, context.clock.clone(), Box::new(observers))
            .map_err(|e| Error::content(job.path(), e.to_string()))?;
    let poster = TrainerServer::of(&context.environment).map(|server| {
        server.post(state.runtime().handle(), outlook_source(outlook.clone(), context.clock.clone()))
    });
    let page = port.page();
    let served = ServedJob {
        handle: handle.clone(),
        request: JobRequest::of(&job.spec),
        model: job.spec.model.path.clone(),
        output: job.spec.output.path.clone(),
        clock: context.clock.clone(),
        // In Kubeflow this process posts the progress itself where it can. Otherwise one of the workers does.
        workers_announce: poster.is_none(),
        outlook,
        events,
        metrics,
    };
    let address = {
        let served = served.clone();
        let (handle, rendezvous) = (handle.clone(), driver.rendezvous());
        state.runtime().block_on(port.serve(listener, handle, rendezvous, briefing, served))?
    };
    let running: Arc<Mutex<Running>> = Arc::default();
    context.signals.respond({
        let (handle, running) = (handle.clone(), running.clone());
        move |signal| {
            handle.stop();
            lock(&running).stop(signal);
            Answer::Finish
        }
    });
    let workers = match start {
        Some(start) => {
            let (workers, handle) = (start(&format!("http://{address}"), &running), handle.clone());
            let follow = move || {
                // Their own last words are those of a job that is over, which is reported here.
                let ended = workers.follow(|_, _| ());
                if ended.is_err() {
                    handle.stop();
                }
                ended
            };
            let thread = thread::Builder::new().name("workers".to_owned()).spawn(follow);
            Some(thread.map_err(|error| {
                lock(&running).stop(Signal::Terminate);
                Error::thread(&error)
            })?)
        }
        None => {
            writeln!(context.out, "listening on {address}")?;
            writeln!(context.out, "watch it at {}", page.at(address))?;
            context.out.flush()?;
            None
        }
    };
    if inputs.written {
        handle.exported();
    }
    let outcome = state.runtime().block_on(driver.run());
    // The last scrape is often missed.
    let last = served.last_metrics(&driver)?;
    // Where another coordinator has taken over, the state is that one's.
    let is_superseded = matches!(outcome, Some(Outcome::Failed(Failure::Superseded { .. })));
    if outcome != Some(Outcome::Done) && !is_superseded {
        state.keep_metrics(&last);
    }
    if outcome.is_some() {
        state.runtime().block_on(driver.linger(LINGER));
    }
    if outcome != Some(Outcome::Done) {
        lock(&running).stop(Signal::Terminate);
    }
    let ended = workers.map_or(Ok(()), |workers| {
        workers.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
    });
    if let Some(poster) = poster {
        poster.end(outcome == Some(Outcome::Done));
    }
    let course = recorded(driver.course(), job, inputs, output);
    match outcome {
        Some(Outcome::Done) => Ok((course, last)),
        None if context.signals.heard().is_none() && ended.is_err() => ended.map(|()| (course, last)),
        Some(Outcome::Cancelled) => Err(Error::Cancelled),
        // Nothing else stops it.
        None => Err(Error::Stopped {
            signal: context.signals.heard().unwrap_or(Signal::Terminate),
            left: progress.left_by_stop(&context.same_command()),
        }),
        Some(Outcome::Failed(failure)) => Err(Error::Failed(failure)),
    }
}
