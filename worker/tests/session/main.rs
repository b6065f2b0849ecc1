//! A worker that has no work: its coordinator is away, or has it stand by. Time is paused: it goes on when nothing else does.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::vec;

use futures_util::stream::{self, Stream, StreamExt};
use hyper_util::rt::TokioIo;
use obsdiff_proto::session::{Briefing, CoordinatorEvent, Dismissed, Reason, Welcome};
use obsdiff_proto::wire::v1::session_server::{Session, SessionServer};
use obsdiff_proto::wire::{MESSAGE_LIMIT, v1};
use obsdiff_proto::{Inventory, JobSpec, Plan, WorkerId};
use obsdiff_security::TokenSender;
use obsdiff_worker::collective::Local;
use obsdiff_worker::device::{GroupTimeouts, Machine, WorkerState};
use obsdiff_worker::session::{Connect, SessionError, SessionSettings, Waiting, attend};
use tokio::io::DuplexStream;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Endpoint, Server, Uri};
use tonic::{Request, Response, Status, Streaming};

const PATIENCE: Duration = Duration::from_secs(10 * 60);

/// What a worker reported that it waits for.
type WaitLog = Arc<Mutex<Vec<Waiting>>>;

fn dial(connect: Arc<Connect>) -> (SessionSettings, WaitLog) {
    let reported = WaitLog::default();
    let hears = reported.clone();
    let on_waiting = Arc::new(move |waiting: &Waiting| hears.lock().unwrap().push(waiting.clone()));
    let endpoint = Endpoint::from_static("http://coordinator:7070");
    (
        SessionSettings {
            endpoint,
            connect,
            token: TokenSender(None),
            rendezvous: None,
            patience: PATIENCE,
            on_waiting,
            on_progress: None,
        },
        reported,
    )
}

fn worker_state() -> Arc<WorkerState> {
    let machine = Machine { instance: 1, speed: 1000, hardware: "a processor".to_owned() };
    WorkerState::new(machine, Arc::new(Local::default()), GroupTimeouts::default())
}

/// A port at which nobody listens.
fn refused() -> Arc<Connect> {
    Arc::new(|endpoint| {
        let dial = tower::service_fn(|_: Uri| async {
            Err::<TokioIo<DuplexStream>, _>(io::Error::from(io::ErrorKind::ConnectionRefused))
        });
        Box::pin(async move { endpoint.connect_with_connector(dial).await })
    })
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_coordinator_stays_away_gives_up_and_says_so_once_a_minute_before() {
    let (dial, reported) = dial(refused());
    let begun = tokio::time::Instant::now();
    let ended = attend(&worker_state(), &dial, oneshot::channel().0).await;
    let Err(error @ SessionError::Away { .. }) = ended else { panic!("{ended:?}") };
    let said = error.to_string();
    assert!(said.starts_with("the coordinator could not be reached for 10 min: "), "{said}");
    assert!(
        said.contains("; if its job is done, nothing is left to do; otherwise see that it runs"),
        "{said}"
    );
    assert!(begun.elapsed() >= PATIENCE && begun.elapsed() < PATIENCE + Duration::from_secs(10));
    let reported = reported.lock().unwrap().iter().map(Waiting::to_string).collect::<Vec<_>>();
    assert_eq!(reported.len(), 10, "{reported:?}");
    for (words, minutes) in reported.iter().zip((1..=10).rev()) {
        assert!(words.starts_with("the coordinator is away (") && words.contains("refused"), "{words}");
        assert!(words.ends_with(&format!("): it is tried again for {minutes} min more")), "{words}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_wants_to_leave_does_not_wait_for_its_coordinator() {
    let (dial, _) = dial(refused());
    let worker_state = worker_state();
    worker_state.drain();
    assert_eq!(attend(&worker_state, &dial, oneshot::channel().0).await.unwrap(), None);
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::CoordinatorEvent, Status>> + Send>>;

/// A coordinator that has a worker stand by for hours, and then says that the job is done.
struct BusyCoordinator;

#[tonic::async_trait]
impl Session for BusyCoordinator {
    type OpenStream = Events;

    async fn open(&self, _: Request<Streaming<v1::WorkerEvent>>) -> Result<Response<Events>, Status> {
        let first = CoordinatorEvent::StandBy("others are at work".to_owned());
        let beats = stream::repeat_with(|| CoordinatorEvent::Heartbeat(None)).take(2 * 3600);
        let done = Dismissed { reason: Reason::Done, words: "the job is done".to_owned() };
        let said = stream::once(async { first }).chain(beats);
        let said = said.chain(stream::once(async { CoordinatorEvent::Dismissed(done) }));
        let said = said.then(|event| async move {
            sleep(Duration::from_secs(1)).await;
            Ok((&event).into())
        });
        Ok(Response::new(Box::pin(said)))
    }
}

fn in_memory(port: UnboundedSender<io::Result<DuplexStream>>) -> Arc<Connect> {
    Arc::new(move |endpoint| {
        let port = port.clone();
        let dial = tower::service_fn(move |_: Uri| {
            let (ours, its) = tokio::io::duplex(1 << 16);
            let sent = port.send(Ok(its)).map_err(io::Error::other);
            async move { sent.map(|()| TokioIo::new(ours)) }
        });
        Box::pin(async move { endpoint.connect_with_connector(dial).await })
    })
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stands_by_is_told_why_and_stays_for_as_long_as_the_coordinator_lives() {
    let (port, incoming) = unbounded_channel();
    let incoming = UnboundedReceiverStream::new(incoming);
    tokio::spawn(
        Server::builder().add_service(SessionServer::new(BusyCoordinator)).serve_with_incoming(incoming),
    );
    let (dial, reported) = dial(in_memory(port));
    let ended = attend(&worker_state(), &dial, oneshot::channel().0).await.unwrap().unwrap();
    assert_eq!(ended.reason, Reason::Done);
    let reported = reported.lock().unwrap().iter().map(Waiting::to_string).collect::<Vec<_>>();
    assert_eq!(reported, ["standing by: others are at work"]);
}

/// A coordinator whose first message is longer than the wire takes.
struct OversizedCoordinator;

#[tonic::async_trait]
impl Session for OversizedCoordinator {
    type OpenStream = Events;

    async fn open(&self, _: Request<Streaming<v1::WorkerEvent>>) -> Result<Response<Events>, Status> {
        let words = "others are at work, ".repeat(MESSAGE_LIMIT / 16);
        let event = v1::coordinator_event::Event::StandBy(v1::StandBy { words });
        let said = Ok(v1::CoordinatorEvent { event: Some(event) });
        Ok(Response::new(Box::pin(stream::once(async { said }))))
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_too_long_ends_a_worker_at_once() {
    let (port, incoming) = unbounded_channel();
    let incoming = UnboundedReceiverStream::new(incoming);
    tokio::spawn(
        Server::builder().add_service(SessionServer::new(OversizedCoordinator)).serve_with_incoming(incoming),
    );
    let (dial, reported) = dial(in_memory(port));
    let ended = attend(&worker_state(), &dial, oneshot::channel().0).await;
    let Err(error @ SessionError::Refused(_)) = ended else { panic!("{ended:?}") };
    let said = error.to_string();
    assert!(said.starts_with("the coordinator refuses: ") && said.contains("too large"), "{said}");
    assert!(said.ends_with("use the same release for both"), "{said}");
    assert_eq!(*reported.lock().unwrap(), []);
}

/// A coordinator whose job runs on other hardware for as many sessions, and is done then.
struct OtherHardwareCoordinator(AtomicU32);

#[tonic::async_trait]
impl Session for OtherHardwareCoordinator {
    type OpenStream = Events;

    async fn open(&self, _: Request<Streaming<v1::WorkerEvent>>) -> Result<Response<Events>, Status> {
        let (reason, words) = match self.0.fetch_add(1, Ordering::Relaxed) {
            0..400 => (Reason::OtherHardware, "the job runs on other hardware"),
            _ => (Reason::Done, "the job is done"),
        };
        let event = CoordinatorEvent::Dismissed(Dismissed { reason, words: words.to_owned() });
        Ok(Response::new(Box::pin(stream::once(async move { Ok((&event).into()) }))))
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_on_other_hardware_stands_by_for_as_long_as_the_coordinator_lives() {
    let (port, incoming) = unbounded_channel();
    let incoming = UnboundedReceiverStream::new(incoming);
    let coordinator = SessionServer::new(OtherHardwareCoordinator(AtomicU32::new(0)));
    tokio::spawn(Server::builder().add_service(coordinator).serve_with_incoming(incoming));
    let (dial, reported) = dial(in_memory(port));
    let begun = tokio::time::Instant::now();
    let ended = attend(&worker_state(), &dial, oneshot::channel().0).await.unwrap().unwrap();
    assert_eq!(ended.reason, Reason::Done);
    assert!(begun.elapsed() > PATIENCE);
    let reported = reported.lock().unwrap().iter().map(Waiting::to_string).collect::<Vec<_>>();
    assert!(
        reported.iter().all(|words| words == "standing by: the job runs on other hardware"),
        "{reported:?}"
    );
    // At once, and then once a minute.
    assert!((10..=30).contains(&reported.len()), "{}", reported.len());
}

/// A coordinator that welcomes a worker and is stopped, session after session: each time with the next of these jobs.
struct RestartedCoordinator(Mutex<vec::IntoIter<Arc<Briefing>>>);

#[tonic::async_trait]
impl Session for RestartedCoordinator {
    type OpenStream = Events;

    async fn open(&self, _: Request<Streaming<v1::WorkerEvent>>) -> Result<Response<Events>, Status> {
        let Some(briefing) = self.0.lock().unwrap().next() else {
            return Err(Status::unavailable("no more jobs"));
        };
        let welcome = Welcome { worker: WorkerId(1), heartbeat: Duration::from_secs(1), briefing };
        let stops = Dismissed { reason: Reason::Restarting, words: "the coordinator stops".to_owned() };
        let said = [CoordinatorEvent::Welcome(Box::new(welcome)), CoordinatorEvent::Dismissed(stops)];
        Ok(Response::new(Box::pin(stream::iter(said).map(|event| Ok((&event).into())))))
    }
}

fn briefing(output: &str) -> Arc<Briefing> {
    let spec: JobSpec = serde_json::from_value(serde_json::json!({
        "model": { "path": "pipeline" },
        "sparsity": { "pattern": "2:4" },
        "calibration": { "prompts": "prompts.txt" },
        "output": { "path": output },
    }))
    .unwrap();
    let plan = Plan { packages: Vec::new(), shards: Vec::new(), budget: None };
    let (inventory, store) = (Inventory::default(), "memory".to_owned());
    Arc::new(Briefing { spec, inventory, plan, inputs: Vec::new(), store })
}

/// Serves such a coordinator, and says how it is reached.
fn restarted(jobs: &[Arc<Briefing>]) -> (SessionSettings, WaitLog) {
    let (port, incoming) = unbounded_channel();
    let coordinator = RestartedCoordinator(Mutex::new(Vec::from(jobs).into_iter()));
    tokio::spawn(
        Server::builder()
            .add_service(SessionServer::new(coordinator))
            .serve_with_incoming(UnboundedReceiverStream::new(incoming)),
    );
    dial(in_memory(port))
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_coordinator_does_not_come_back_says_that_it_is_started_again() {
    let (dial, _) = restarted(&[briefing("out")]);
    let ended = attend(&worker_state(), &dial, oneshot::channel().0).await;
    let said = ended.unwrap_err().to_string();
    assert!(said.ends_with("; otherwise start it again, then this worker"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_worker_stays_with_its_job_over_restarts_and_refuses_another_one() {
    let jobs = [briefing("out"), briefing("out"), briefing("other")];
    let (dial, reported) = restarted(&jobs);
    let (to_brief, given) = oneshot::channel();
    let ended = attend(&worker_state(), &dial, to_brief).await;
    assert!(matches!(ended, Err(SessionError::OtherJob)), "{ended:?}");
    assert_eq!(given.await.unwrap(), jobs[0]);
    // It was reached again twice, and the second time it had another job.
    let reported = reported.lock().unwrap().iter().map(Waiting::to_string).collect::<Vec<_>>();
    assert!(reported[0].contains("the coordinator stops"), "{reported:?}");
}
