//! What runs on the simulated hosts: the product's coordinator and workers, over simulated connections, on an engine that counts.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use obsdiff::cli::SecurityArgs;
use obsdiff::clock::Clock;
use obsdiff_coordinator::metrics::Metrics;
use obsdiff_coordinator::{CoreDriver, Observer, Outlook, ServedJob};
use obsdiff_core::{Core, Event, Job, Outcome, Phase};
use obsdiff_proto::Plan;
use obsdiff_proto::session::Reason;
use obsdiff_proto::view::{JobRequest, WatchMessage};
use obsdiff_proto::wire::Reach;
use obsdiff_proto::wire::v1::WatchRequest;
use obsdiff_proto::wire::v1::jobs_client::JobsClient;
use obsdiff_security::TokenSender;
use obsdiff_tests::Prng;
use obsdiff_worker::collective::Transport;
use obsdiff_worker::device::{
    CallHook, Engine, EngineCall, FakeEngine, GroupTimeouts, Machine, PartStoreError, WorkerState,
    follow_waiting,
};
use obsdiff_worker::rendezvous::PeerRendezvous;
use obsdiff_worker::session::{SessionSettings, attend};
use tokio::runtime::Handle;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use turmoil::net::TcpListener;

use crate::job::{Shape, SlowRecords, Store};
use crate::mesh::Mesh;
use crate::pruning::Pruning;
use crate::puppet;
use crate::trace::Trace;
use crate::wire::{Wire, Wires};

pub(crate) const COORDINATOR: &str = "coordinator";
pub(crate) const WATCHER: &str = "watcher";
const PORT: u16 = 7070;

/// How long workers that connect are dismissed because the job is over.
pub(crate) const LINGER: Duration = Duration::from_secs(4);

/// How patient workers are with each other: less than users', to the benefit of the simulation's length.
const PATIENCE: GroupTimeouts =
    GroupTimeouts { form: Duration::from_secs(20), silence: Duration::from_secs(15) };

/// What the hosts of a run share, and faults reach.
#[derive(Clone)]
pub(crate) struct Stage {
    pub(crate) seed: u64,
    pub(crate) shape: Shape,
    /// The job that is truly pruned, in place of one of that shape.
    pub(crate) pruning: Option<Arc<Pruning>>,
    pub(crate) trace: Trace,
    pub(crate) store: Store,
    pub(crate) outcome: Arc<Mutex<Option<Outcome>>>,
    /// What an export wrote.
    pub(crate) written: Arc<Mutex<Option<Vec<u8>>>>,
}

impl Stage {
    pub(crate) fn new(seed: u64, shape: Shape, pruning: Option<Arc<Pruning>>) -> Self {
        Self {
            seed,
            shape,
            pruning,
            trace: Trace::default(),
            store: Store::default(),
            outcome: Arc::default(),
            written: Arc::default(),
        }
    }

    /// The job as far as it is, for its next coordinator.
    fn begin(&self) -> Job {
        let (inventory, plan, options) = match &self.pruning {
            Some(job) => (job.inventory.clone(), job.plan.clone(), job.options()),
            None => (Arc::new(self.shape.inventory()), Arc::new(self.shape.plan()), self.shape.options()),
        };
        self.store.begin(inventory, plan, options)
    }

    fn chance(&self, of: u64) -> Prng {
        Prng::new(self.seed.wrapping_mul(1000).wrapping_add(of))
    }
}

/// How sockets beyond the machine are opened without certificates.
fn insecure() -> SecurityArgs {
    SecurityArgs { tls_cert: None, tls_key: None, tls_ca: None, token_file: None, insecure: true }
}

/// Runs the coordinator until the job is over.
pub(crate) async fn coordinate(stage: Stage) -> turmoil::Result {
    let job = stage.begin();
    let mut rng = stage.chance(500 + u64::from(job.life));
    stage
        .trace
        .here(COORDINATOR, format_args!("life {} begins, {} packages committed", job.life, job.committed));
    sleep(Duration::from_millis(rng.within(10..300))).await;
    let start = Instant::now();
    let clock: Clock = Arc::new(move || start.elapsed());
    let records = Box::new(SlowRecords { store: stage.store.clone(), rng: Mutex::new(rng) });
    let (events, _) = broadcast::channel(16);
    let shown = Box::new(Shown { trace: stage.trace.clone(), phase: None, events: events.clone() });
    let (mut driver, handle) = CoreDriver::new(job, records, clock.clone(), shown)?;
    let served = ServedJob {
        handle: handle.clone(),
        request: JobRequest::default(),
        model: "pipeline".to_owned(),
        output: "out".to_owned(),
        clock,
        outlook: tokio::sync::watch::channel(Outlook::default()).1,
        workers_announce: false,
        events,
        metrics: Arc::new(Metrics::new()?),
    };
    let port = insecure().port(([0, 0, 0, 0], PORT).into())?;
    let mut briefing = stage.shape.briefing();
    if let Some(job) = &stage.pruning {
        (briefing.inventory, briefing.plan) = ((*job.inventory).clone(), (*job.plan).clone());
    }
    let router = port.router(handle, driver.rendezvous(), Arc::new(briefing), served).await?;
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let (accepted, incoming) = mpsc::channel(16);
    tokio::spawn(router.serve_with_incoming(ReceiverStream::new(incoming)));
    let trace = stage.trace.clone();
    tokio::spawn(async move {
        loop {
            let wire = listener.accept().await.map(|(stream, _)| Wire::new(stream, COORDINATOR, &trace));
            if accepted.send(wire).await.is_err() {
                return;
            }
        }
    });
    let outcome = driver.run().await;
    stage.trace.here(COORDINATOR, format_args!("ends with {outcome:?}"));
    *stage.outcome.lock().unwrap() = outcome;
    driver.linger(LINGER).await;
    Ok(())
}

/// Writes down what the coordinator reports, and checks what always holds.
struct Shown {
    trace: Trace,
    phase: Option<Phase>,
    events: broadcast::Sender<String>,
}

impl Observer for Shown {
    fn event(&mut self, event: &Event) {
        self.trace.here(COORDINATOR, event);
        // Nobody may be watching.
        let _ = self.events.send(event.to_string());
    }

    fn step(&mut self, core: &Core) {
        core.check(&[]).unwrap();
        let phase = Some(core.phase());
        if self.phase != phase {
            self.phase = phase;
            self.trace.here(COORDINATOR, format_args!("{phase:?} of {:?}", core.package()));
        }
    }
}

/// Watches the job until it is over, through all lives of its coordinator: what is committed stays committed.
pub(crate) async fn watch(stage: Stage) -> turmoil::Result {
    let endpoint = insecure().endpoint(&format!("http://{COORDINATOR}:{PORT}"))?;
    let connect = Wires::default().connect(WATCHER, &stage.trace);
    let mut committed = 0;
    loop {
        sleep(Duration::from_millis(200)).await;
        let Ok(channel) = connect(endpoint.clone()).await else { continue };
        let Ok(news) = JobsClient::new(channel).watch(WatchRequest {}).await else { continue };
        let mut news = news.into_inner();
        while let Ok(Some(next)) = news.message().await {
            let WatchMessage::Report(report) = WatchMessage::try_from(next)? else { continue };
            let view = report.view;
            if view.committed < committed {
                return Err(format!("of {committed} committed packages {} are left", view.committed).into());
            }
            committed = view.committed;
            if view.ending.is_some() {
                stage.trace.here(WATCHER, "sees the end");
                return Ok(());
            }
        }
    }
}

/// A worker's host.
#[derive(Clone)]
pub(crate) struct Worker {
    pub(crate) number: u64,
    pub(crate) stage: Stage,
    pub(crate) plan: Arc<Plan>,
    /// When its first process starts.
    pub(crate) late: Duration,
    pub(crate) wires: Wires,
    /// Processes so far.
    pub(crate) lives: Arc<Mutex<u64>>,
    /// The desk of the present one.
    pub(crate) worker_state: Arc<Mutex<Option<Arc<WorkerState>>>>,
}

impl Worker {
    pub(crate) fn name(&self) -> String {
        format!("worker-{}", self.number)
    }

    /// Runs one process after another, until one has done its part.
    pub(crate) async fn work(self) -> turmoil::Result {
        let (name, trace) = (self.name(), self.stage.trace.clone());
        loop {
            let life = {
                let mut lives = self.lives.lock().unwrap();
                *lives += 1;
                *lives
            };
            let mut rng = self.stage.chance(10 * self.number + life * 1_000_003);
            sleep(if life == 1 { self.late } else { Duration::from_millis(rng.within(10..500)) }).await;
            trace.here(&name, format_args!("process {life} starts"));
            let ended = self.process(life, rng).await;
            trace.here(&name, format_args!("process {life} ends: {ended:?}"));
            match ended {
                Ok(Some(Reason::Done)) => return Ok(()),
                Ok(Some(Reason::Refused | Reason::Protocol)) | Err(_) => {
                    return Err(format!("{name} gave up: {ended:?}").into());
                }
                Ok(_) => {}
            }
        }
    }

    async fn process(&self, life: u64, rng: Prng) -> Result<Option<Reason>, String> {
        let endpoint = insecure().endpoint(&format!("http://{COORDINATOR}:{PORT}")).unwrap();
        let rendezvous = Arc::new(PeerRendezvous::new(Handle::current(), endpoint.clone(), Reach::Gloo));
        let mesh: Arc<dyn Transport> = Arc::new(Mesh { host: self.name(), rendezvous: rendezvous.clone() });
        let instance = u128::from(self.number) << 64 | u128::from(life);
        let machine = Machine { instance, speed: 1000, hardware: "a processor".to_owned() };
        let worker_state = WorkerState::new(machine, mesh, PATIENCE);
        *self.worker_state.lock().unwrap() = Some(worker_state.clone());
        worker_state.save_when_it_leaves();
        if life.is_multiple_of(2) {
            worker_state.save_every(Duration::ZERO);
        }
        self.start_device(worker_state.clone(), rng);
        let settings = SessionSettings {
            endpoint,
            connect: self.wires.connect(&self.name(), &self.stage.trace),
            token: TokenSender(None),
            rendezvous: Some(rendezvous),
            patience: Duration::from_secs(30 * 60),
            on_waiting: Arc::new(|_| ()),
            on_progress: None,
        };
        let ended = attend(&worker_state, &settings, oneshot::channel().0).await;
        ended.map(|dismissed| dismissed.map(|dismissed| dismissed.reason)).map_err(|error| error.to_string())
    }

    fn start_device(&self, worker_state: Arc<WorkerState>, rng: Prng) {
        let part_store = Arc::new(self.stage.store.part_store.clone());
        let (plan, written, hook) = (self.plan.clone(), self.stage.written.clone(), self.hook(rng));
        let pruning = self.stage.pruning.clone();
        puppet::start(move || {
            let mut engine: Box<dyn Engine> = match pruning {
                Some(job) => job.engine(part_store, hook, written),
                None => Box::new(FakeEngine::new(plan, part_store, written, hook)),
            };
            follow_waiting(&worker_state, &mut *engine, &mut |version, most| {
                let worker_state = worker_state.clone();
                puppet::wait(async move { drop(timeout(most, worker_state.changed(version)).await) });
            });
        });
    }

    /// Lets work take its time, and fail while the store does.
    fn hook(&self, rng: Prng) -> CallHook {
        let rng = Mutex::new(rng);
        let (name, trace, store) = (self.name(), self.stage.trace.clone(), self.stage.store.clone());
        Arc::new(move |call| {
            let within = |range| rng.lock().unwrap().within(range);
            let (wait, stores) = match call {
                EngineCall::Read(_) => (within(1..20), true),
                EngineCall::Shard(_) => (within(100..1200), false),
                EngineCall::Save | EngineCall::Restore => (within(1..200), true),
                EngineCall::Reduce(_) => (within(1..100), false),
                EngineCall::Solve(_) => (within(10..300), true),
                EngineCall::Apply(_) => (within(10..100), true),
                EngineCall::Export => (within(10..200), true),
            };
            let (name, trace) = (name.clone(), trace.clone());
            puppet::wait(async move {
                sleep(Duration::from_millis(wait)).await;
                trace.here(&name, format_args!("{call:?}"));
            });
            match store.check() {
                Err(error) if stores => Err(PartStoreError::Failed(error).into()),
                _ => Ok(()),
            }
        })
    }
}
