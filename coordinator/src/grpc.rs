//! The gRPC service for the sessions of workers in other processes.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use obsdiff_core::Dismissal;
use obsdiff_proto::message::Command;
use obsdiff_proto::session::{Briefing, CoordinatorEvent, Dismissed, Reason, Welcome, WorkerEvent};
use obsdiff_proto::wire::{MOST_WORKERS, PROGRESS, REACH, Reach, WANTED, WireError, v1};
use obsdiff_proto::{WorkerId, lock};
use tokio::sync::mpsc::{self, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::announcing::{Announcements, Announcer};
use crate::{Downlink, Handle, Message};

/// How often each side expects a message from the other.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a worker may take to send its Hello.
const HELLO: Duration = Duration::from_secs(10);
/// Commands that may wait for a slow connection. Further ones are dropped, and sent again later.
const WAITING: usize = 1024;

/// Serves sessions of one job.
pub(super) struct Sessions {
    handle: Handle,
    briefing: Arc<Briefing>,
    places: Places,
    announcements: Option<Announcements>,
}

impl Sessions {
    /// Sessions whose workers receive this briefing. One of those that want it receives the progress, where `announcements` are given.
    pub(super) fn new(handle: Handle, briefing: Arc<Briefing>, announcements: Option<Announcements>) -> Self {
        Self { handle, briefing, places: Places::default(), announcements }
    }
}

/// The number of workers that may work at a time, all of which reach each other. A worker that cannot reach others takes all places.
#[derive(Clone)]
struct Places {
    free: Arc<Semaphore>,
    /// How those at work reach each other; of no meaning where nobody works.
    reach: Arc<Mutex<Reach>>,
}

impl Default for Places {
    fn default() -> Self {
        Self { free: Arc::new(Semaphore::new(MOST_WORKERS)), reach: Arc::default() }
    }
}

impl Places {
    /// A place for a worker. A worker without a network collective works alone, so it waits until no other one works; so does one that
    /// reaches others in another way than those at work.
    fn take(&self, reach: Reach) -> Result<OwnedSemaphorePermit, &'static str> {
        let mut at_work = lock(&self.reach);
        if self.free.available_permits() < MOST_WORKERS && *at_work != reach {
            return Err(stand_by(reach, *at_work));
        }
        let places = if reach == Reach::Alone { MOST_WORKERS as u32 } else { 1 };
        let place =
            self.free.clone().try_acquire_many_owned(places).map_err(|_| stand_by(reach, *at_work))?;
        *at_work = reach;
        Ok(place)
    }

    /// Lets a worker stand by until there is a place. Returns nothing if the worker leaves first. There is no queue, because a worker
    /// that needs all places would keep others from the free ones.
    async fn wait(&self, reach: Reach, out: &Sender<v1::CoordinatorEvent>) -> Option<OwnedSemaphorePermit> {
        let mut last = None;
        loop {
            let why = match self.take(reach) {
                Ok(place) => return Some(place),
                Err(why) => why,
            };
            let event = if last.replace(why) == Some(why) {
                CoordinatorEvent::Heartbeat(None)
            } else {
                CoordinatorEvent::StandBy(why.to_owned())
            };
            // A full queue means that the worker is slow, not lost.
            let _ = out.try_send((&event).into());
            if timeout(HEARTBEAT, out.closed()).await.is_ok() {
                return None;
            }
        }
    }
}

/// Why a worker that reaches others so stands by while others work that are reached in another way.
fn stand_by(own: Reach, at_work: Reach) -> &'static str {
    match (own, at_work) {
        (Reach::Alone, _) => {
            "others are at work, and this worker has no network collective: it stands by until they leave; \
             to work with them, build it with --features gloo, and beyond this machine give it --insecure"
        }
        (Reach::Nccl, Reach::Gloo) => {
            "the workers of this job sum their Grams by Gloo, this one by NCCL: it stands by until they leave; \
             to work with them, start it with --collective gloo"
        }
        (Reach::Gloo, Reach::Nccl) => {
            "the workers of this job sum their Grams by NCCL, this one by Gloo: it stands by until they leave; \
             to work with them, start it with --collective nccl"
        }
        _ => "a worker without a network collective is at work: this one stands by until it leaves",
    }
}

type EventStream = Pin<Box<dyn Stream<Item = Result<v1::CoordinatorEvent, Status>> + Send>>;

#[tonic::async_trait]
impl v1::session_server::Session for Sessions {
    type OpenStream = EventStream;

    async fn open(
        &self,
        request: Request<Streaming<v1::WorkerEvent>>,
    ) -> Result<Response<EventStream>, Status> {
        let reach = Reach::of(request.metadata().get(REACH).map(|reach| reach.as_bytes()));
        let wants_progress = request.metadata().get(PROGRESS).is_some_and(|value| *value == WANTED);
        let announcements = self.announcements.clone().filter(|_| wants_progress);
        let mut incoming = request.into_inner();
        let first = timeout(HELLO, incoming.message()).await;
        let first = first.map_err(|_| Status::deadline_exceeded("a worker says hello first"))??;
        let first = first.ok_or_else(|| Status::invalid_argument("a worker says hello first"))?;
        let (out, events) = mpsc::channel(WAITING);
        let events: EventStream = Box::pin(ReceiverStream::new(events).map(Ok));
        // The Hello is kept while its worker stands by.
        let shards = self.briefing.plan.shards.len();
        let hello = match first.into_event(shards) {
            Ok(WorkerEvent::Hello(hello)) => *hello,
            Ok(WorkerEvent::Status(_)) => return Err(Status::invalid_argument("a worker says hello first")),
            Err(error @ WireError::Protocol { .. }) => {
                dismiss(&out, Dismissed { reason: Reason::Protocol, words: error.to_string() });
                return Ok(Response::new(events));
            }
            Err(error) => return Err(Status::invalid_argument(error.to_string())),
        };
        let (handle, briefing, places) = (self.handle.clone(), self.briefing.clone(), self.places.clone());
        tokio::spawn(async move {
            let Some(place) = places.wait(reach, &out).await else { return };
            let (named, name) = oneshot::channel();
            let (open, closed) = oneshot::channel();
            let link =
                SessionLink { out: out.clone(), briefing, named: Mutex::new(Some(named)), _open: open };
            handle.send(Message::join(hello, Box::new(link))).await;
            // No answer means that the driver has ended: the stream ends too.
            let Ok(worker) = name.await else { return };
            let announcer = announcements.map(|announcements| announcements.announcer(worker));
            listen((worker, handle), (incoming, shards), out, closed, announcer).await;
            drop(place);
        });
        Ok(Response::new(events))
    }
}

/// Passes on a worker's messages, in a job of so many shards, until either side ends the session.
async fn listen(
    (worker, handle): (WorkerId, Handle),
    (mut incoming, shards): (Streaming<v1::WorkerEvent>, usize),
    out: Sender<v1::CoordinatorEvent>,
    mut closed: oneshot::Receiver<()>,
    announcer: Option<Announcer>,
) {
    let mut beat = interval(HEARTBEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let why = loop {
        tokio::select! {
            biased;
            _ = &mut closed => return,
            () = out.closed() => break "the connection was lost".to_owned(),
            _ = beat.tick() => {
                let progress = announcer.as_ref().and_then(Announcer::progress);
                // A full queue means that the worker is slow, not lost.
                let _ = out.try_send((&CoordinatorEvent::Heartbeat(progress)).into());
            }
            message = incoming.message() => match message {
                Ok(Some(event)) => match event.into_event(shards) {
                    Ok(WorkerEvent::Status(status)) => handle.send(Message::report(worker, *status)).await,
                    Ok(WorkerEvent::Hello(_)) => break refuse(&out, "it said hello twice".to_owned()),
                    Err(error) => break refuse(&out, error.to_string()),
                },
                // The worker closed the stream, or it did not answer in time.
                Ok(None) => break "the connection ended".to_owned(),
                Err(status) => {
                    tracing::info!(%worker, error = status.message(), "a worker's connection was lost");
                    break "the connection was lost".to_owned();
                }
            },
        }
    };
    handle.send(Message::left(worker, why)).await;
}

fn refuse(out: &Sender<v1::CoordinatorEvent>, words: String) -> String {
    dismiss(out, Dismissed { reason: Reason::Refused, words: words.clone() });
    words
}

/// Sends a worker the reason why its session ends. If the queue is full, the worker only sees the stream end.
fn dismiss(out: &Sender<v1::CoordinatorEvent>, dismissed: Dismissed) {
    let _ = out.try_send((&CoordinatorEvent::Dismissed(dismissed)).into());
}

/// The coordinator's end of a session.
struct SessionLink {
    out: Sender<v1::CoordinatorEvent>,
    briefing: Arc<Briefing>,
    named: Mutex<Option<oneshot::Sender<WorkerId>>>,
    /// Dropped with the link: the session is over.
    _open: oneshot::Sender<()>,
}

impl Downlink for SessionLink {
    fn welcome(&self, worker: WorkerId) {
        let welcome = Welcome { worker, heartbeat: HEARTBEAT, briefing: self.briefing.clone() };
        let _ = self.out.try_send((&CoordinatorEvent::Welcome(Box::new(welcome))).into());
        if let Some(named) = lock(&self.named).take() {
            // The task ends only with its connection.
            let _ = named.send(worker);
        }
    }

    fn command(&self, command: Command) {
        if self.out.try_send((&CoordinatorEvent::Command(command)).into()).is_err() {
            tracing::debug!("a command was dropped: the session is slow or gone");
        }
    }

    fn dismiss(&self, why: Dismissal) {
        dismiss(&self.out, (&why).into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_without_a_way_to_others_works_where_no_other_does() {
        let places = Places::default();
        let words = |taken: Result<OwnedSemaphorePermit, &'static str>| taken.unwrap_err();
        let networked = [places.take(Reach::Gloo).unwrap(), places.take(Reach::Gloo).unwrap()];
        assert!(words(places.take(Reach::Alone)).contains("build it with --features gloo"));
        drop(networked);
        let alone = places.take(Reach::Alone).unwrap();
        assert!(words(places.take(Reach::Gloo)).contains("stands by until it leaves"));
        assert!(places.take(Reach::Alone).is_err());
        drop(alone);
        assert!(places.take(Reach::Gloo).is_ok());
    }

    #[test]
    fn a_worker_works_only_with_those_that_it_reaches() {
        let places = Places::default();
        for (at_work, other, remedy) in [
            (Reach::Gloo, Reach::Nccl, "start it with --collective gloo"),
            (Reach::Nccl, Reach::Gloo, "start it with --collective nccl"),
        ] {
            let group = [places.take(at_work).unwrap(), places.take(at_work).unwrap()];
            let why = places.take(other).unwrap_err();
            assert!(why.contains("stands by until they leave") && why.contains(remedy), "{why}");
            drop(group);
            drop(places.take(other).unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_stands_by_gets_the_reason_once_and_stays_until_there_is_a_place() {
        let places = Places::default();
        let at_work = places.take(Reach::Gloo).unwrap();
        let (out, mut events) = mpsc::channel(WAITING);
        let waiting = tokio::spawn({
            let places = places.clone();
            async move { places.wait(Reach::Alone, &out).await.is_some() }
        });
        let mut next = async || CoordinatorEvent::try_from(events.recv().await.unwrap()).unwrap();
        let CoordinatorEvent::StandBy(why) = next().await else { panic!("it gets no reason") };
        assert!(why.contains("stands by"), "{why}");
        for _ in 0..3600 {
            assert_eq!(next().await, CoordinatorEvent::Heartbeat(None));
        }
        // Meanwhile workers that can work with others may join.
        drop(places.take(Reach::Gloo).unwrap());
        drop(at_work);
        assert!(waiting.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_leaves_while_it_stands_by_is_forgotten() {
        let places = Places::default();
        let _at_work = places.take(Reach::Gloo).unwrap();
        let (out, events) = mpsc::channel(WAITING);
        let waiting = tokio::spawn(async move { places.wait(Reach::Alone, &out).await.is_none() });
        drop(events);
        assert!(waiting.await.unwrap());
    }
}
