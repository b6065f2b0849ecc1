//! A worker's session with a coordinator in another process. The worker sends its status, and receives commands. A lost connection is
//! opened again.

use std::error::Error as _;
use std::mem::{Discriminant, discriminant};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, pending};
use obsdiff_proto::causes;
use obsdiff_proto::session::{
    Briefing, CoordinatorEvent, Dismissed, JobProgress, Reason, Welcome, WorkerEvent,
};
use obsdiff_proto::wire::v1::session_client::SessionClient;
use obsdiff_proto::wire::{MESSAGE_LIMIT, PROGRESS, REACH, WANTED, WireError, v1};
use obsdiff_security::TokenSender;
use thiserror::Error;
use tokio::sync::mpsc::{self, Sender};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{self, Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use crate::device::WorkerState;
use crate::rendezvous::{AuthorizedChannel, PeerRendezvous};

/// The first wait before a lost connection is opened again; doubles each time.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// The longest such wait.
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// How often a worker reports that it still waits.
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// A coordinator that sends nothing for so many of its own heartbeat intervals is gone.
const HEARTBEATS: u32 = 4;
/// How long it may take to be welcomed.
const WELCOME: Duration = Duration::from_secs(10);

/// Opens a connection to an endpoint.
pub type Connect = dyn Fn(Endpoint) -> BoxFuture<'static, Result<Channel, transport::Error>> + Send + Sync;

/// How the coordinator is reached.
#[derive(Clone)]
pub struct SessionSettings {
    /// Where, and by which certificates.
    pub endpoint: Endpoint,
    /// Over what.
    pub connect: Arc<Connect>,
    /// The job's token.
    pub token: TokenSender,
    /// Where the worker finds its peers; none for one that has no way to them, and works alone.
    pub rendezvous: Option<Arc<PeerRendezvous>>,
    /// How long the coordinator may be away.
    pub patience: Duration,
    /// Called with what the worker waits for.
    pub on_waiting: Arc<OnWaiting>,
    /// Called with each heartbeat, where the worker can announce the job's progress.
    pub on_progress: Option<Arc<OnJobProgress>>,
}

/// Called with how far the job is where this worker is the one to announce it, and with nothing where another one is.
pub type OnJobProgress = dyn Fn(Option<JobProgress>) + Send + Sync;

/// Called with what a worker waits for: at once, and then once a minute.
pub type OnWaiting = dyn Fn(&Waiting) + Send + Sync;

/// What a worker waits for that has no work.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Waiting {
    /// The coordinator cannot be reached.
    #[error("the coordinator is away ({why}): it is tried again for {} more", in_words(*left))]
    Coordinator {
        /// What was seen of it last.
        why: String,
        /// For how long.
        left: Duration,
    },
    /// The coordinator does not need the worker now.
    #[error("standing by: {why}")]
    Turn {
        /// Why.
        why: String,
    },
}

/// A time in minutes, or in seconds where it is short.
fn in_words(time: Duration) -> String {
    match time.as_secs_f64().ceil() as u64 {
        seconds if seconds < 60 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}

/// Connections over TCP.
pub fn tcp() -> Arc<Connect> {
    Arc::new(|endpoint| Box::pin(async move { endpoint.connect().await }))
}

/// Why a worker gives up.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The coordinator does not serve this worker, however often it asks.
    #[error("the coordinator refuses: {0}")]
    Refused(String),
    /// The coordinator cannot be reached.
    #[error(
        "the coordinator could not be reached for {}: {why}; if its job is done, nothing is left to do; otherwise {}",
        in_words(*patience),
        if *met { "start it again, then this worker" } else { "see that it runs at the address that this worker was given" }
    )]
    Away {
        /// How long it was waited for.
        patience: Duration,
        /// What was seen of it last.
        why: String,
        /// Whether this worker was ever in its job.
        met: bool,
    },
    /// The coordinator was started again with another job.
    #[error("the coordinator runs another job than before: start the worker again")]
    OtherJob,
}

/// The job of a worker: that of its first session.
struct GivenJob {
    briefing: Option<Arc<Briefing>>,
    /// Where the first briefing goes.
    taker: Option<oneshot::Sender<Arc<Briefing>>>,
}

impl GivenJob {
    fn new(taker: oneshot::Sender<Arc<Briefing>>) -> Self {
        Self { briefing: None, taker: Some(taker) }
    }

    /// Takes the briefing of a session.
    fn set(&mut self, briefing: &Arc<Briefing>) -> Result<(), SessionError> {
        if self.briefing.get_or_insert_with(|| briefing.clone()) != briefing {
            return Err(SessionError::OtherJob);
        }
        if let Some(taker) = self.taker.take() {
            // The receiver is gone where nobody waits for the job.
            let _ = taker.send(briefing.clone());
        }
        Ok(())
    }
}

/// How a session ended.
enum SessionEnd {
    Dismissed(Dismissed),
    Lost(String),
    Fatal(SessionError),
}

/// How long the coordinator has been away, and what was last reported about it.
struct Absence<'a> {
    settings: &'a SessionSettings,
    /// When the last message came from it.
    heard: Instant,
    reported: Option<(Discriminant<Waiting>, Instant)>,
}

impl<'a> Absence<'a> {
    fn new(settings: &'a SessionSettings) -> Self {
        Self { settings, heard: Instant::now(), reported: None }
    }

    /// The coordinator is there.
    fn end(&mut self) {
        self.heard = Instant::now();
    }

    /// What is left of the worker's patience.
    fn left(&self) -> Duration {
        self.settings.patience.saturating_sub(self.heard.elapsed())
    }

    fn report(&mut self, waiting: &Waiting) {
        let kind = discriminant(waiting);
        if self.reported.is_none_or(|(last, when)| last != kind || when.elapsed() >= REPORT_EVERY) {
            self.reported = Some((kind, Instant::now()));
            (self.settings.on_waiting)(waiting);
        }
    }
}

/// Keeps a worker in a job until the coordinator dismisses it for good or its state is closed, and closes the state then. While the
/// coordinator is away, the worker keeps what it holds and tries to connect again, until its patience is over. `briefing` gets the job at
/// the first welcome.
///
/// # Errors
/// When the coordinator refuses the worker, stays away, or comes back with another job.
pub async fn attend(
    worker_state: &Arc<WorkerState>,
    settings: &SessionSettings,
    briefing: oneshot::Sender<Arc<Briefing>>,
) -> Result<Option<Dismissed>, SessionError> {
    let mut wait = FIRST_WAIT;
    let mut absence = Absence::new(settings);
    let mut job = GivenJob::new(briefing);
    let end = loop {
        let begun = Instant::now();
        let mut stands_by = false;
        let lost = match session(worker_state, settings, &mut absence, &mut job).await {
            SessionEnd::Dismissed(Dismissed { reason: Reason::OtherHardware, words }) => {
                stands_by = true;
                words
            }
            SessionEnd::Dismissed(dismissed) if dismissed.reason.may_return() => dismissed.words,
            SessionEnd::Dismissed(dismissed) => break Ok(Some(dismissed)),
            SessionEnd::Fatal(error) => break Err(error),
            SessionEnd::Lost(why) => why,
        };
        // A worker that wants to leave does not connect again to say so.
        if !worker_state.is_open() || worker_state.is_draining() {
            break Ok(None);
        }
        let left = absence.left();
        if left.is_zero() {
            break Err(SessionError::Away {
                patience: settings.patience,
                why: lost,
                met: job.briefing.is_some(),
            });
        }
        absence.report(&if stands_by {
            Waiting::Turn { why: lost }
        } else {
            Waiting::Coordinator { why: lost, left }
        });
        // A session that lasted shows that the network works.
        if begun.elapsed() > LONGEST_WAIT {
            wait = FIRST_WAIT;
        }
        sleep(wait.min(left)).await;
        wait = (2 * wait).min(LONGEST_WAIT);
    };
    worker_state.close();
    end
}

async fn session(
    worker_state: &Arc<WorkerState>,
    settings: &SessionSettings,
    absence: &mut Absence<'_>,
    job: &mut GivenJob,
) -> SessionEnd {
    let channel = match (settings.connect)(settings.endpoint.clone()).await {
        Ok(channel) => channel,
        Err(error) => return SessionEnd::Lost(causes(&error)),
    };
    let (events, outgoing) = mpsc::channel(16);
    let hello = WorkerEvent::Hello(Box::new(worker_state.hello()));
    if events.send((&hello).into()).await.is_err() {
        return SessionEnd::Lost("the connection was closed".to_owned());
    }
    let line: AuthorizedChannel = InterceptedService::new(channel, settings.token.clone());
    let mut client = SessionClient::new(line.clone())
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    let mut request = Request::new(ReceiverStream::new(outgoing));
    let reach = settings.rendezvous.as_ref().and_then(|rendezvous| rendezvous.reach().value());
    if let Some(reach) = reach {
        request.metadata_mut().insert(REACH, MetadataValue::from_static(reach));
    }
    if settings.on_progress.is_some() {
        request.metadata_mut().insert(PROGRESS, MetadataValue::from_static(WANTED));
    }
    let mut incoming = match timeout(WELCOME, client.open(request)).await {
        Ok(Ok(response)) => response.into_inner(),
        Ok(Err(status)) => return refused(&status),
        Err(_) => return SessionEnd::Lost("it does not answer".to_owned()),
    };
    let welcome = match welcomed(worker_state, &mut incoming, absence).await {
        Ok(welcome) => welcome,
        Err(end) => return end,
    };
    if let Some(rendezvous) = &settings.rendezvous {
        rendezvous.open(welcome.worker, line);
    }
    worker_state.set_worker_id(welcome.worker);
    if let Err(error) = job.set(&welcome.briefing) {
        return SessionEnd::Fatal(error);
    }
    tracing::info!(worker = %welcome.worker, "taken into the job");
    let end = tokio::select! {
        biased;
        end = follow(worker_state, &welcome, &mut incoming, settings.on_progress.as_deref()) => end,
        () = report(worker_state, welcome.heartbeat, &events) => SessionEnd::Lost("the worker ends".to_owned()),
    };
    if let Some(rendezvous) = &settings.rendezvous {
        rendezvous.close();
    }
    absence.end();
    end
}

/// Waits for the welcome, for as long as the coordinator has the worker stand by.
async fn welcomed(
    worker_state: &WorkerState,
    incoming: &mut Streaming<v1::CoordinatorEvent>,
    absence: &mut Absence<'_>,
) -> Result<Box<Welcome>, SessionEnd> {
    loop {
        let silent = |_| SessionEnd::Lost("it does not say welcome".to_owned());
        let event = timeout(WELCOME, next(incoming)).await.map_err(silent)??;
        absence.end();
        match event {
            CoordinatorEvent::Welcome(welcome) => return Ok(welcome),
            CoordinatorEvent::Dismissed(dismissed) => return Err(SessionEnd::Dismissed(dismissed)),
            CoordinatorEvent::StandBy(why) => absence.report(&Waiting::Turn { why }),
            CoordinatorEvent::Heartbeat(_) => {}
            CoordinatorEvent::Command(_) => {
                return Err(SessionEnd::Lost("it does not say welcome first".to_owned()));
            }
        }
        // The coordinator does not wait for a worker that leaves.
        if !worker_state.is_open() || worker_state.is_draining() {
            return Err(SessionEnd::Lost("the worker ends".to_owned()));
        }
    }
}

/// Sends the status after each change, and at each heartbeat, as long as the worker state is open.
async fn report(worker_state: &WorkerState, beat: Duration, events: &Sender<v1::WorkerEvent>) {
    while worker_state.is_open() {
        let (status, version) = worker_state.status();
        if events.send((&WorkerEvent::Status(Box::new(status))).into()).await.is_err() {
            // The incoming stream says why.
            return pending().await;
        }
        // Without a change it is sent again.
        let _ = timeout(beat, worker_state.changed(version)).await;
    }
}

/// Takes the coordinator's messages until the session ends.
async fn follow(
    worker_state: &Arc<WorkerState>,
    welcome: &Welcome,
    incoming: &mut Streaming<v1::CoordinatorEvent>,
    on_progress: Option<&OnJobProgress>,
) -> SessionEnd {
    let silence = welcome.heartbeat * HEARTBEATS;
    loop {
        match timeout(silence, next(incoming)).await {
            Ok(Ok(CoordinatorEvent::Command(command))) => worker_state.take(command),
            Ok(Ok(CoordinatorEvent::Dismissed(dismissed))) => return SessionEnd::Dismissed(dismissed),
            Ok(Ok(CoordinatorEvent::Heartbeat(progress))) => {
                if let Some(on_progress) = on_progress {
                    on_progress(progress);
                }
            }
            Ok(Ok(CoordinatorEvent::Welcome(_) | CoordinatorEvent::StandBy(_))) => {
                return SessionEnd::Lost("it says welcome twice".to_owned());
            }
            Ok(Err(end)) => return end,
            Err(_) => {
                return SessionEnd::Lost(format!("nothing heard of it for {} s", silence.as_secs_f64()));
            }
        }
    }
}

async fn next(incoming: &mut Streaming<v1::CoordinatorEvent>) -> Result<CoordinatorEvent, SessionEnd> {
    match incoming.message().await {
        Ok(Some(event)) => CoordinatorEvent::try_from(event).map_err(misunderstood),
        Ok(None) => Err(SessionEnd::Lost("it closed the connection".to_owned())),
        Err(status) => Err(refused(&status)),
    }
}

fn misunderstood(error: WireError) -> SessionEnd {
    SessionEnd::Fatal(SessionError::Refused(error.to_string()))
}

/// Whether asking again may help.
fn refused(status: &Status) -> SessionEnd {
    match status.code() {
        Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented | Code::InvalidArgument => {
            SessionEnd::Fatal(SessionError::Refused(status.message().to_owned()))
        }
        // A message that exceeds the agreed length would be as long the next time.
        Code::OutOfRange => {
            let words = status.message();
            SessionEnd::Fatal(SessionError::Refused(format!("{words}: use the same release for both")))
        }
        _ => SessionEnd::Lost(match status.source() {
            Some(source) => causes(source),
            None => status.message().to_owned(),
        }),
    }
}
