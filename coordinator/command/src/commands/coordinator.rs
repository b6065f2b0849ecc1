//! `obsdiff coordinator JOB`.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use obsdiff_coordinator::metrics::Metrics;
use obsdiff_coordinator::{Driver, JobState, Port, ServedJob};
use obsdiff_core::Outcome;
use obsdiff_engine::export::{DOCUMENT_MARK, Document};
use obsdiff_proto::session::Briefing;
use obsdiff_proto::view::JobRequest;
use obsdiff_worker::pruning_job::JobOutput;
use tokio::sync::{broadcast, watch};

use crate::cli::CoordinatorArgs;
use crate::context::CommandContext;
use crate::job::JobFile;
use crate::progress::Progress;
use crate::report::retimed;
use crate::run::{
    CourseNotes, Display, Inputs, PhaseDisplay, Summary, claim_grams, encode, is_left_over, note, open_state,
    output_of, settle_output, written_record,
};
use crate::signals::{Answer, Signal};
use crate::spans::SpanReport;
use crate::traces::TraceSettings;
use crate::{Error, Result};

/// How long workers that stand by can still learn that the job is over. It is longer than the time after which they ask again.
const LINGER: Duration = Duration::from_secs(4);

/// The name of the last metrics in an output.
const METRICS_FILE: &str = "metrics.prom";

/// Coordinates a job until it is done, or the process is asked to stop.
///
/// # Errors
/// Bad input, before any work; a port that cannot be bound; why the job failed.
pub(super) fn coordinate(args: &CoordinatorArgs, context: &mut CommandContext<'_>) -> Result<()> {
    let job = context.job(&args.job)?;
    let traces = TraceSettings::of(&context.environment)?;
    let port = args.security.port(args.listen)?;
    // The port is bound before any work, but accepts connections only once the job is checked.
    drop(port.bind()?);
    // Workers hold the Grams, so each of them checks whether these fit its memory.
    let inputs = Inputs::open(&job, 0, None)?;
    let listener = port.bind()?;
    let progress = context.progress();
    if let Some(note) = &inputs.prompts.note {
        progress.note(note);
    }
    progress.expect_work(inputs.work(&job));
    let state = open_state(&job, &inputs)?;
    note(&state, &progress);
    progress.keep(state.job.committed as usize, inputs.plan.packages.len(), state.url());
    if inputs.conditioning.is_some() {
        // Workers find it in the store: they need not have the file.
        let put = encode(&job, &inputs, (state.store(), state.runtime().handle()), &progress);
        put.map_err(|error| error.after_begin(state.url()))?;
    }
    let output = output_of(&job, state.runtime().handle())?;
    if inputs.written {
        settle_output(&job, &state)?;
    }
    let cost = inputs.described.cost(&job.spec, &inputs.plan);
    let notes = Arc::new(CourseNotes::new(&cost, context.clock.clone()));
    let done = if is_left_over(&state, &inputs) {
        Ok(None)
    } else {
        claim_grams(&job, &state).map_err(|error| error.after_begin(state.url()))?;
        let drive = drive(&job, &inputs, &state, (port, listener, traces), &progress, (&notes, context));
        drive.map(|metrics| Some((&*notes, metrics)))
    };
    match done {
        Ok(driven) => {
            progress.written(&job.spec.output.path);
            let told = tell(&output, (&job, &inputs), driven, context);
            state.remove(&context.disk);
            told
        }
        Err(error) => Err(error.after_begin(state.url())),
    }
}

/// Ends as a run on one machine does, where the output can be seen from here. If this process has `driven` the job, its record says how
/// that went, and its last metrics are put beside it.
fn tell(
    output: &JobOutput,
    (job, inputs): (&JobFile, &Inputs),
    driven: Option<(&CourseNotes, String)>,
    context: &mut CommandContext<'_>,
) -> Result<()> {
    let Some(mut record) = written_record(output) else {
        return Ok(writeln!(context.out, "written to {}", job.spec.output.path)?);
    };
    if let Some((notes, metrics)) = driven {
        if let Some(measured) = &mut record.measured {
            measured.seconds = (context.clock)().as_secs_f64();
            measured.course = Some(notes.course());
        }
        // The job has its result, and does not fail for what is said of it.
        let last = Document { name: METRICS_FILE, text: format!("# {DOCUMENT_MARK}\n{metrics}") };
        let told: Vec<_> = retimed(output, &record).into_iter().chain([last]).collect();
        if let Err(error) = output.replace(&record, &told, &context.disk) {
            tracing::warn!(%error, "how the job went is not in the record");
        }
    }
    let summary = Summary::new(record, SpanReport::default(), inputs.predicted_peak(job, 1));
    Ok(writeln!(context.out, "{summary}")?)
}

/// Drives the job until it is done, and gives its last metrics. Those of a job that is not done stay in its state.
fn drive(
    job: &JobFile,
    inputs: &Inputs,
    state: &JobState,
    (port, listener, traces): (Port, TcpListener, Option<TraceSettings>),
    progress: &Progress,
    (notes, context): (&Arc<CourseNotes>, &mut CommandContext<'_>),
) -> Result<String> {
    let briefing = Arc::new(Briefing {
        spec: job.spec.clone(),
        inventory: inputs.described.inventory.clone(),
        plan: inputs.plan.clone(),
        inputs: inputs.model_files.clone(),
        store: state.absolute_url().map_err(Error::system)?,
    });
    briefing.check().map_err(|e| Error::content(job.path(), format!("cannot be told to workers: {e}")))?;
    let (told, _) = broadcast::channel(256);
    let steps = u64::from(job.spec.calibration.steps);
    let (end, expected_end) = watch::channel(None);
    let display = Display::new(inputs, steps, progress, Arc::new(PhaseDisplay::default()))
        .noting(notes.clone())
        .telling(told.clone(), end);
    let metrics = Arc::new(Metrics::new()?);
    let traces = traces.map(|traces| traces.begin(&job.spec.model.path, state.runtime().handle()));
    let observers = (display, (metrics.clone(), traces.transpose()?));
    let records = Box::new(state.records());
    let (mut driver, handle) =
        Driver::new(state.job.clone(), records, context.clock.clone(), Box::new(observers))
            .map_err(|e| Error::content(job.path(), e.to_string()))?;
    let page = port.page();
    let served = ServedJob {
        handle: handle.clone(),
        request: JobRequest::of(&job.spec),
        model: job.spec.model.path.clone(),
        output: job.spec.output.path.clone(),
        clock: context.clock.clone(),
        expected_end,
        told,
        metrics,
    };
    let address = {
        let served = served.clone();
        let (handle, rendezvous) = (handle.clone(), driver.rendezvous());
        state.runtime().block_on(port.serve(listener, handle, rendezvous, briefing, served))?
    };
    writeln!(context.out, "listening on {address}")?;
    writeln!(context.out, "watch it at {}", page.at(address))?;
    context.out.flush()?;
    context.signals.respond({
        let handle = handle.clone();
        move |_| {
            handle.stop();
            Answer::Finish
        }
    });
    if inputs.written {
        handle.exported();
    }
    let outcome = state.runtime().block_on(driver.run());
    // The last scrape is often missed.
    let last = served.last_metrics(&driver)?;
    if outcome != Some(Outcome::Done) {
        state.keep_metrics(&last);
    }
    if outcome.is_some() {
        state.runtime().block_on(driver.linger(LINGER));
    }
    match outcome {
        Some(Outcome::Done) => Ok(last),
        Some(Outcome::Cancelled) => Err(Error::Cancelled),
        // Nothing else stops it.
        None => Err(Error::Stopped {
            signal: context.signals.heard().unwrap_or(Signal::Terminate),
            left: progress.left_by_stop(&context.command),
        }),
        Some(Outcome::Failed(failure)) => Err(Error::Failed(failure)),
    }
}
