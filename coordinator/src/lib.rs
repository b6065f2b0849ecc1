//! The coordinator of a job around its pure core: [`CoreDriver`] feeds it what happens and carries out what it decides, in one task.
//! Sessions reach it by a [`Handle`], over any connection. [`Port`] serves the sessions of other processes by gRPC.
//!
//! It knows the messages of workers, but neither a worker's code nor the model.

mod announcing;
pub mod clock;
mod done;
mod driver;
mod error;
mod grpc;
mod history;
mod http;
mod job_state;
mod jobs;
pub mod metrics;
pub mod page;
mod port;
mod records;
mod rendezvous;
mod store;

use obsdiff_core::{Core, Dismissal, Event, Input, View};
use obsdiff_proto::WorkerId;
use obsdiff_proto::message::{Command, Hello, Status};
use obsdiff_proto::view::JobDetails;
use obsdiff_store::LinearFigures;
use tokio::sync::mpsc::Sender;
use tokio::sync::oneshot;

pub use done::DoneJob;
pub use driver::CoreDriver;
pub use error::{Error, Result};
pub use history::MeasuredCourse;
pub use job_state::{JobInputs, JobState};
pub use jobs::{Outlook, ServedJob};
pub use port::{PageAddress, Port};
pub use records::{Records, StoreRecords};
pub use rendezvous::RendezvousService;
pub use store::{ChangedKey, CoordinatorStore, Opened, changed_keys};

/// The coordinator's end of a session. Calls must not block.
pub trait Downlink: Send {
    /// Sends the worker's name in this session. Called before anything else.
    fn welcome(&self, worker: WorkerId);
    /// Sends a command. One that cannot be sent may be dropped.
    fn command(&self, command: Command);
    /// Sends the reason why the session ends, and ends it.
    fn dismiss(&self, why: Dismissal);
}

/// Receives the events of a job.
pub trait Observer {
    /// Something that users want to know.
    fn event(&mut self, event: &Event);
    /// Called after each step of `core`, before the step's commands are sent.
    fn step(&mut self, core: &Core);
    /// A session opened; this comes before the step that takes it in.
    fn joined(&mut self, _worker: WorkerId, _hello: &Hello) {}
    /// A worker sent its status; this comes before the step that takes it in.
    fn reported(&mut self, _worker: WorkerId, _status: &Status) {}
}

/// Ignores all events.
impl Observer for () {
    fn event(&mut self, _: &Event) {}
    fn step(&mut self, _: &Core) {}
}

/// Receives all events where it is there.
impl<A: Observer> Observer for Option<A> {
    fn event(&mut self, event: &Event) {
        self.iter_mut().for_each(|observer| observer.event(event));
    }

    fn step(&mut self, core: &Core) {
        self.iter_mut().for_each(|observer| observer.step(core));
    }

    fn joined(&mut self, worker: WorkerId, hello: &Hello) {
        self.iter_mut().for_each(|observer| observer.joined(worker, hello));
    }

    fn reported(&mut self, worker: WorkerId, status: &Status) {
        self.iter_mut().for_each(|observer| observer.reported(worker, status));
    }
}

/// Both receive all events.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn event(&mut self, event: &Event) {
        self.0.event(event);
        self.1.event(event);
    }

    fn step(&mut self, core: &Core) {
        self.0.step(core);
        self.1.step(core);
    }

    fn joined(&mut self, worker: WorkerId, hello: &Hello) {
        self.0.joined(worker, hello);
        self.1.joined(worker, hello);
    }

    fn reported(&mut self, worker: WorkerId, status: &Status) {
        self.0.reported(worker, status);
        self.1.reported(worker, status);
    }
}

/// A message to the driver.
enum Message {
    Join(Box<Hello>, Box<dyn Downlink>),
    Input(Input),
    View(oneshot::Sender<View>),
    Readiness(oneshot::Sender<Result<(), String>>),
    /// Whether the job's store could be read when it was last looked at, with the error if not.
    Store(Result<(), String>),
    /// What became of the linears of a committed package.
    Pruned(Vec<LinearFigures>),
    Details(oneshot::Sender<(View, JobDetails)>),
    /// The coordinator with this life runs the job now.
    Superseded(u32),
    Stop,
}

impl Message {
    /// A session opens. Its worker is named by [`Downlink::welcome`].
    fn join(hello: Hello, downlink: Box<dyn Downlink>) -> Self {
        Self::Join(Box::new(hello), downlink)
    }

    /// A worker's report of its status.
    fn report(worker: WorkerId, status: Status) -> Self {
        Self::Input(Input::Reported { worker, status: Box::new(status) })
    }

    /// A session ended.
    fn left(worker: WorkerId, why: impl Into<String>) -> Self {
        Self::Input(Input::Left { worker, why: why.into() })
    }
}

/// Messages that may wait for the driver. Further senders wait, so that the memory of a slow coordinator stays bounded.
const INBOX: usize = 1024;

/// Sends messages to a driver. Messages that are sent after it has ended are dropped.
#[derive(Clone)]
pub struct Handle(Sender<Message>);

impl Handle {
    /// Says that the pruned pipeline is there. To be called by a thread, not a task.
    pub fn exported(&self) {
        self.put(Message::Input(Input::Exported));
    }

    /// Opens a session. Its worker is named by [`Downlink::welcome`]. To be called by a thread, not a task.
    pub fn join(&self, hello: Hello, downlink: Box<dyn Downlink>) {
        self.put(Message::join(hello, downlink));
    }

    /// Passes on a worker's status. To be called by a thread, not a task.
    pub fn report(&self, worker: WorkerId, status: Status) {
        self.put(Message::report(worker, status));
    }

    /// Says that a session ended, and why. To be called by a thread, not a task.
    pub fn left(&self, worker: WorkerId, why: &str) {
        self.put(Message::left(worker, why));
    }

    /// Asks for the job to be stopped.
    pub async fn cancel(&self) {
        self.send(Message::Input(Input::Cancel)).await;
    }

    /// The state of the job; none once the driver has ended.
    pub async fn view(&self) -> Option<View> {
        let (reply, view) = oneshot::channel();
        self.send(Message::View(reply)).await;
        view.await.ok()
    }

    /// Whether workers can join the job, and if not, why; none once the driver has ended.
    pub async fn readiness(&self) -> Option<Result<(), String>> {
        let (reply, readiness) = oneshot::channel();
        self.send(Message::Readiness(reply)).await;
        readiness.await.ok()
    }

    /// The state of the job and more about it; none once the driver has ended.
    pub async fn details(&self) -> Option<(View, JobDetails)> {
        let (reply, details) = oneshot::channel();
        self.send(Message::Details(reply)).await;
        details.await.ok()
    }

    /// Ends the driver and leaves the job as it is. To be called by a thread, not a task.
    pub fn stop(&self) {
        self.put(Message::Stop);
    }

    /// Sends a message from a task.
    async fn send(&self, message: Message) {
        // A driver that ended has nothing more to decide.
        let _ = self.0.send(message).await;
    }

    /// Sends a message from a thread.
    fn put(&self, message: Message) {
        // As above.
        let _ = self.0.blocking_send(message);
    }
}

#[cfg(test)]
mod tests;
