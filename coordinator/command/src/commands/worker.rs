//! `obsdiff worker --coordinator URL`.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use obsdiff_engine::checkpoint::digests;
use obsdiff_proto::InputDigest;
use obsdiff_proto::session::{Briefing, Dismissed, Reason};
use obsdiff_security::TokenSender;
use obsdiff_store::JobStore;
use obsdiff_worker::collective::Transport;
use obsdiff_worker::device::{Desk, Machine, Patience, ShelfError, StoreShelf, WorkError, follow};
use obsdiff_worker::meeting::Meeting;
use obsdiff_worker::session::{Dial, SessionError, attend, tcp};
use tokio::runtime::Runtime;
use tonic::transport::Endpoint;

use crate::cli::WorkerArgs;
use crate::described::Described;
use crate::fit;
use crate::job::{Job, StoreSettings};
use crate::machine::product_rate;
use crate::progress::Progress;
use crate::prompts::JobPrompts;
use crate::run::{Gauge, Inputs, Work, prepare};
use crate::session::Session;
use crate::signals::{Answer, Signals};
use crate::{Error, Result};

/// What a worker says that leaves.
const LEFT: &str = "the job goes on with other workers, or when this command is run again";

/// Works for a coordinator until the job is over or the process is asked to stop.
///
/// # Errors
/// When the coordinator cannot be dialled as asked, it refuses the worker, or the model here is not the job's.
pub(super) fn work(args: &WorkerArgs, session: &mut Session<'_>) -> Result<()> {
    session.use_threads(args.process.threads)?;
    let runtime = crate::runtime::runtime()?;
    let progress = session.progress(args.process.quiet);
    let (dial, transport) = dial(args, progress.clone(), &runtime)?;
    let megaflops = (product_rate(&session.clock)? / 1e6) as u64;
    let desk = Desk::new(
        Machine { instance: instance(), speed: megaflops, hardware: obsdiff_engine::hardware() },
        transport,
        Patience::default(),
    );
    let ready = Arc::new(AtomicBool::new(false));
    drain_when_asked(&session.signals, &desk, &ready);
    let (briefs, briefings) = mpsc::channel();
    let attending = runtime.spawn({
        let desk = desk.clone();
        let mut first: Option<Arc<Briefing>> = None;
        async move {
            let mut briefed = |briefing: &Arc<Briefing>| match &first {
                None => {
                    first = Some(briefing.clone());
                    briefs.send(briefing.clone()).map_err(|_| "the worker ends".to_owned())
                }
                Some(first) if *first == *briefing => Ok(()),
                Some(_) => {
                    Err("the coordinator runs another job than before: start the worker again".to_owned())
                }
            };
            attend(&desk, &dial, &mut briefed).await
        }
    });
    let worked = match briefings.recv() {
        Ok(briefing) => serve(&briefing, &runtime, &desk, &ready, session, &progress),
        // The session ended before it began: what it says is told below.
        Err(_) => Ok(()),
    };
    desk.close();
    let ended = runtime.block_on(attending).map_err(|e| Error::Session(e.to_string()))?;
    worked?;
    let spans = session.spans.report();
    if !spans.whole.is_zero() {
        writeln!(session.out, "{spans}")?;
    }
    let dismissed = ended.map_err(|e| match e {
        SessionError::Refused(_) => Error::Refused(e.to_string()),
        _ => Error::Session(e.to_string()),
    })?;
    match (dismissed, session.signals.heard()) {
        (Some(Dismissed { reason: Reason::Done, words }), _) => Ok(writeln!(session.out, "{words}")?),
        (Some(Dismissed { reason: Reason::Protocol, words }), _) => Err(Error::Refused(words)),
        // Its place is taken by whoever starts it again: 0 would say that its work is done.
        (_, Some(signal)) => Err(Error::Stopped { signal, left: LEFT.to_owned() }),
        (Some(Dismissed { reason: Reason::Cancelled, .. }), None) => Err(Error::Cancelled),
        (Some(Dismissed { words, .. }), None) => Err(Error::Session(words)),
        (None, None) => Err(Error::Session("the worker ended before the job was done".to_owned())),
    }
}

/// How the coordinator and the other workers are reached.
fn dial(args: &WorkerArgs, progress: Progress, runtime: &Runtime) -> Result<(Dial, Arc<dyn Transport>)> {
    let endpoint = args.security.endpoint(&args.coordinator)?;
    let (transport, meeting) = reach(&endpoint, args.security.insecure, runtime);
    let dial = Dial {
        endpoint,
        connect: tcp(),
        token: TokenSender(args.security.token()?),
        meeting,
        patience: args.patience,
        tell: Arc::new(move |waiting| progress.note(&waiting.to_string())),
    };
    Ok((dial, transport))
}

/// The way to the other workers: by Gloo, and the coordinator tells where they are. Gloo's connections have no certificates: beyond
/// this machine the worker has no way to others, unless `insecure` says that it may.
#[cfg(feature = "gloo")]
fn reach(
    coordinator: &Endpoint,
    insecure: bool,
    runtime: &Runtime,
) -> (Arc<dyn Transport>, Option<Arc<Meeting>>) {
    use obsdiff_worker::collective::{Alone, Gloo, Rendezvous};
    let meeting = Arc::new(Meeting::new(runtime.handle().clone(), coordinator.clone()));
    let here = meeting.address().is_ok_and(|address| address.to_canonical().is_loopback());
    if here || insecure {
        (Arc::new(Gloo::new(meeting.clone())), Some(meeting))
    } else {
        (Arc::new(Alone::default()), None)
    }
}

/// The way to the other workers: none in this build.
#[cfg(not(feature = "gloo"))]
fn reach(_: &Endpoint, _: bool, _: &Runtime) -> (Arc<dyn Transport>, Option<Arc<Meeting>>) {
    (Arc::new(obsdiff_worker::collective::Alone::default()), None)
}

/// Opens the job here, and follows its orders.
fn serve(
    briefing: &Briefing,
    runtime: &Runtime,
    desk: &Arc<Desk>,
    ready: &AtomicBool,
    session: &Session<'_>,
    progress: &Progress,
) -> Result<()> {
    let root = tracing::info_span!(crate::run::RUN_SPAN);
    let _running = root.enter();
    let job = Job::received(briefing.spec.clone(), StoreSettings::of(&session.environment));
    let store = JobStore::open(&briefing.store, job.stores().pairs())?;
    let inputs = inputs(&job, briefing, runtime, &store, desk)?;
    if let Some(memory) = session.memory {
        fit::check(&job, &inputs.described, &inputs.plan, 1, memory)?;
    }
    // Whoever prepares for long is not taken for one that hangs.
    let preparing = desk.clone();
    progress.call_at_steps(Box::new(move || preparing.advance()));
    let (model, trajectories) = prepare(&job, &inputs, progress)?;
    let work =
        Work { job: &job, inputs: &inputs, trajectories: &trajectories, dense: None, disk: &session.disk };
    let shelf = StoreShelf::new(store, runtime.handle().clone());
    let mut engine = work.engine(model, Arc::new(shelf), Arc::new(Gauge::default()), desk);
    ready.store(true, Ordering::SeqCst);
    follow(desk, &mut engine);
    match desk.take_failure() {
        Some(WorkError::Engine(error)) => Err(Error::from(error).after_begin(&briefing.store)),
        Some(WorkError::Shelf(ShelfError::Damaged(problem))) => Err(Error::Damaged(problem)),
        _ => Ok(()),
    }
}

/// The job's model as it lies here, with the prompts of its store. Its files must be those that the coordinator has.
fn inputs(
    job: &Job,
    briefing: &Briefing,
    runtime: &Runtime,
    store: &JobStore,
    desk: &Desk,
) -> Result<Inputs> {
    let described = Described::read(job)?;
    let weights = Arc::new(described.pipeline.transformer_weights()?);
    let root = described.pipeline.path();
    let model_files = digests(root, &described.files, &|| desk.advance())?;
    check_same_files(root, &model_files, &briefing.inputs)?;
    if described.inventory != briefing.inventory {
        return Err(Error::content(
            root,
            "is described otherwise than by the coordinator: use the same release",
        ));
    }
    let store = store.at_start();
    let record = runtime.block_on(store.job())?;
    let prompts = runtime.block_on(store.prompts(&record))?;
    // Prompt i has id i, and with it its noise: those that are held out follow exactly as many as calibrate.
    let calibrating = briefing.spec.calibration.prompt_count() as usize;
    if record.spec != briefing.spec || prompts.calibration.len() != calibrating {
        return Err(Error::content(
            &briefing.store,
            "holds the prompts of another job than the coordinator's",
        ));
    }
    Ok(Inputs {
        prompts: JobPrompts {
            calibration: prompts.calibration,
            held_out: prompts.held_out,
            digest: Some(record.prompts.to_string()),
            held_out_digest: None,
            note: None,
        },
        plan: briefing.plan.clone(),
        folder: std::env::temp_dir(),
        written: false,
        model_files,
        prompt_files: record.prompt_files,
        weights,
        described,
    })
}

/// Every file that a model is read from must be the coordinator's, and none may be missing.
fn check_same_files(root: &Path, here: &[InputDigest], theirs: &[InputDigest]) -> Result<()> {
    let refuse = |path: &str, problem: &str| {
        Err(Error::content(root.join(path), format!("{problem}: give both the same model")))
    };
    let by_path = |files: &[InputDigest]| -> BTreeMap<String, String> {
        files.iter().map(|file| (file.path.clone(), file.sha256.clone())).collect()
    };
    let (here, theirs) = (by_path(here), by_path(theirs));
    for (path, sha256) in &here {
        match theirs.get(path) {
            Some(said) if said == sha256 => {}
            Some(_) => return refuse(path, "differs from the coordinator's"),
            None => return refuse(path, "is read here, but not by the coordinator"),
        }
    }
    match theirs.keys().find(|path| !here.contains_key(*path)) {
        Some(path) => refuse(path, "is read by the coordinator, but not here"),
        None => Ok(()),
    }
}

/// A signal lets a worker at work finish what it has begun, hand back the rest, and leave; one that is not `ready` yet has nothing to
/// finish, and ends at once.
fn drain_when_asked(signals: &Signals, desk: &Arc<Desk>, ready: &Arc<AtomicBool>) {
    let (desk, ready) = (desk.clone(), ready.clone());
    signals.respond(move |signal| {
        if ready.load(Ordering::SeqCst) {
            desk.drain();
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
