//! `obsdiff worker --coordinator URL`.

pub(super) mod each_gpu;
mod peers;
mod process;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::DType;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_proto::lock;
use obsdiff_proto::session::{Briefing, Dismissed, JobProgress, Reason};
use obsdiff_security::TokenSender;
use obsdiff_worker::collective::{Counted, Transport};
use obsdiff_worker::device::{GroupTimeouts, Machine, PartStoreError, WorkError, WorkerState};
use obsdiff_worker::preparation::Assignment;
use obsdiff_worker::session::{SessionError, SessionSettings, attend, tcp};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::cli::{SaveSums, WorkerArgs};
use crate::context::CommandContext;
use crate::job::{JobFile, StoreSettings};
use crate::kubeflow::TrainerServer;
use crate::machine::{GPU_NUMBERS, worker_speed};
use crate::measured::WorkerMeasurements;
use crate::progress::Progress;
use crate::signals::{Answer, Signals};
use crate::{Error, Result};
use process::ReceivingProcess;

/// What a worker says that leaves.
const LEFT: &str = "the job goes on with other workers, or when this command is run again";

/// Works for a coordinator until the job is over or the process is asked to stop.
///
/// # Errors
/// When the coordinator cannot be reached as asked, or refuses the worker, or when the model on this host is not the job's.
pub(super) fn work(args: &WorkerArgs, context: &mut CommandContext<'_>) -> Result<()> {
    if let Some(gpus) = &args.devices {
        return each_gpu::work(gpus, args, context);
    }
    // Where GPUs sum the Grams, those of the host stay untouched and take none of its memory.
    context.memory = args.memory.or(context.memory).filter(|_| peers::sums_on_host(args));
    context.use_threads(args.process.threads)?;
    context.compute_here()?;
    let device = super::run::open_device(args.device)?;
    let runtime = crate::runtime::runtime()?;
    let progress = context.progress();
    let (mut settings, transport) = settings(args, progress.clone(), &runtime)?;
    let megaflops = (worker_speed(&device, &context.clock)? / 1e6) as u64;
    let numbers = if device.is_host() { DType::F32 } else { GPU_NUMBERS };
    tracing::info!(megaflops, device = %args.device, ?numbers, "the speed of this worker's products");
    let measured = Arc::new(WorkerMeasurements::new(context.spans.clone(), device.clone()));
    let transport = Arc::new(Counted::new(transport, measured.reduced.clone()));
    let worker_state = WorkerState::new(
        Machine { instance: instance(), speed: megaflops, hardware: device.hardware() },
        transport,
        GroupTimeouts::default(),
    );
    worker_state.measure_by({
        let measured = measured.clone();
        Box::new(move || measured.measures())
    });
    let poster = TrainerServer::of(&context.environment).map(|server| {
        let heard: Arc<Mutex<Option<JobProgress>>> = Arc::default();
        settings.on_progress = Some(Arc::new({
            let heard = heard.clone();
            move |progress| *lock(&heard) = progress
        }));
        let measured = measured.clone();
        server.post(runtime.handle(), move || Some(((*lock(&heard))?, measured.measures().pruned)))
    });
    if let Some(period) = args.save_sums.period() {
        worker_state.save_every(period);
    }
    if args.save_sums != SaveSums::Never {
        worker_state.save_when_it_leaves();
    }
    let ready = Arc::new(AtomicBool::new(false));
    drain_when_asked(&context.signals, &worker_state, &ready);
    let (to_brief, briefing) = oneshot::channel();
    let attending = runtime.spawn({
        let worker_state = worker_state.clone();
        async move { attend(&worker_state, &settings, to_brief).await }
    });
    let worked = match briefing.blocking_recv() {
        Ok(briefing) => {
            serve(&briefing, &runtime, (&worker_state, &measured), (&ready, &device), context, &progress)
        }
        // The session ended before it began. The error below says why.
        Err(_) => Ok(()),
    };
    worker_state.close();
    let ended = runtime.block_on(attending).map_err(|e| Error::Session(e.to_string()))?;
    if let Some(poster) = poster {
        poster.end(matches!(&ended, Ok(Some(Dismissed { reason: Reason::Done, .. }))));
    }
    worked?;
    let spans = context.spans.report();
    if !spans.whole.is_zero() {
        writeln!(context.out, "{spans}")?;
    }
    let dismissed = ended.map_err(|e| match e {
        SessionError::Refused(_) => Error::Refused(e.to_string()),
        _ => Error::Session(e.to_string()),
    })?;
    match (dismissed, context.signals.heard()) {
        (Some(Dismissed { reason: Reason::Done, words }), _) => Ok(writeln!(context.out, "{words}")?),
        (Some(Dismissed { reason: Reason::Protocol, words }), _) => Err(Error::Refused(words)),
        // The worker may be started again. Exit code 0 would mean that its work is done.
        (_, Some(signal)) => Err(Error::Stopped { signal, left: LEFT.to_owned() }),
        (Some(Dismissed { reason: Reason::Cancelled, .. }), None) => Err(Error::Cancelled),
        (Some(Dismissed { words, .. }), None) => Err(Error::Session(words)),
        (None, None) => Err(Error::Session("the worker ended before the job was done".to_owned())),
    }
}

/// How the coordinator and the other workers are reached.
fn settings(
    args: &WorkerArgs,
    progress: Progress,
    runtime: &Runtime,
) -> Result<(SessionSettings, Arc<dyn Transport>)> {
    let endpoint = args.security.endpoint(&args.coordinator)?;
    let (transport, rendezvous) = peers::reach(args, &endpoint, &progress, runtime)?;
    let settings = SessionSettings {
        endpoint,
        connect: tcp(),
        token: TokenSender(args.security.token()?),
        rendezvous,
        patience: args.patience,
        on_waiting: Arc::new(move |waiting| progress.note(&waiting.to_string())),
        on_progress: None,
    };
    Ok((settings, transport))
}

/// Prepares the job here, and follows its orders.
fn serve(
    briefing: &Briefing,
    runtime: &Runtime,
    (worker_state, measured): (&Arc<WorkerState>, &Arc<WorkerMeasurements>),
    (ready, device): (&AtomicBool, &ComputeDevice),
    context: &CommandContext<'_>,
    progress: &Progress,
) -> Result<()> {
    let root = tracing::info_span!(crate::run::RUN_SPAN);
    let _running = root.enter();
    // Work that goes on counts as progress, so that a worker that takes long to prepare is not taken for one that hangs.
    let going_on = worker_state.clone();
    progress.call_at_steps(Box::new(move || going_on.advance()));
    let mut job = JobFile::received(briefing.spec.clone(), StoreSettings::of(&context.environment));
    job.open_model(progress)?;
    let assignment = Assignment {
        briefing,
        store_settings: job.stores().pairs(),
        runtime: runtime.handle(),
        device,
        disk: &context.disk,
        clock: &*context.clock,
        source: &job,
        worker_state,
        watch: measured.clone(),
        ready,
    };
    let (memory, clock) = (context.memory, &context.clock);
    let process =
        ReceivingProcess { job: &job, plan: &briefing.plan, memory, device, measured, clock, progress };
    match assignment.work(&process)? {
        Some(WorkError::Engine(error)) => Err(Error::from(error).after_begin(&briefing.store)),
        Some(WorkError::PartStore(PartStoreError::Damaged(problem))) => Err(Error::Damaged(problem)),
        _ => Ok(()),
    }
}

/// On a signal, a worker that works finishes what it has begun, hands back the rest and leaves. One that is not `ready` yet ends at
/// once.
fn drain_when_asked(signals: &Signals, worker_state: &Arc<WorkerState>, ready: &Arc<AtomicBool>) {
    let (worker_state, ready) = (worker_state.clone(), ready.clone());
    signals.respond(move |signal| {
        if ready.load(Ordering::SeqCst) {
            worker_state.drain();
            Answer::Finish
        } else {
            Answer::Exit(format!("stopped by {signal}: {LEFT}"))
        }
    });
}

/// A number that no other process has.
fn instance() -> u128 {
    let half = || u128::from(RandomState::new().build_hasher().finish());
    half() << 64 | half()
}
