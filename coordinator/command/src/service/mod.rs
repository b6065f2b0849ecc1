//! The coordinator of a job around its pure core: [`Driver`] feeds it what happens and carries out what it decides, in one task.
//! Sessions reach it by a [`Handle`], whatever they come over.

mod driver;
mod grpc;
mod jobs;
mod local;
mod meeting;
mod port;
mod records;

use std::io;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;

use obsdiff_core::{Core, Dismissal, Event, Input, View};
use obsdiff_proto::WorkerId;
use obsdiff_proto::message::{Command, Hello, Status};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::Sender;
use tokio::sync::oneshot;

pub use driver::Driver;
pub use jobs::Watched;
pub use local::attend;
pub use meeting::Meeting;
pub use port::Port;
pub use records::{MemoryRecords, Records, StoreRecords};

/// Threads of a runtime that drive its tasks.
const WORKERS: usize = 2;
/// Threads of a runtime that wait for files.
const BLOCKING: usize = 8;

/// A runtime for what waits on networks and stores.
///
/// # Errors
/// When its threads cannot be started.
pub fn runtime() -> crate::Result<Runtime> {
    // The runtime panics where the system gives it no thread: whether it does is tried before.
    try_threads(WORKERS + BLOCKING).map_err(|e| crate::Error::thread(&e))?;
    Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()
        .map_err(crate::Error::system)
}

/// Has so many threads at once, and ends them.
fn try_threads(count: usize) -> io::Result<()> {
    let (kept, waits) = channel::<()>();
    let waits = Arc::new(Mutex::new(waits));
    let start = |_| {
        let waits = waits.clone();
        // Each waits until the last one is there: until there is nobody who could send.
        thread::Builder::new().spawn(move || drop(waits.lock().map(|waits| waits.recv())))
    };
    let started: io::Result<Vec<_>> = (0..count).map(start).collect();
    drop(kept);
    started?.into_iter().for_each(|thread| drop(thread.join()));
    Ok(())
}

/// The coordinator's end of a session. Calls must not block.
pub trait Downlink: Send {
    /// The worker's name in this session; said before anything else.
    fn welcome(&self, worker: WorkerId);
    /// Sends a command. One that cannot be sent may be dropped.
    fn command(&self, command: Command);
    /// Says why the session ends, and ends it.
    fn dismiss(&self, why: Dismissal);
}

/// Who is told how the job goes.
pub trait Audience {
    /// Something worth telling a user.
    fn event(&mut self, event: &Event);
    /// A step was taken; `core` is as it left it. Called before its commands are sent.
    fn step(&mut self, core: &Core);
}

/// Nobody.
impl Audience for () {
    fn event(&mut self, _: &Event) {}
    fn step(&mut self, _: &Core) {}
}

/// What reaches the driver.
enum Message {
    Join(Box<Hello>, Box<dyn Downlink>),
    Input(Input),
    View(oneshot::Sender<View>),
    /// The coordinator of this life runs the job now.
    Superseded(u32),
    Stop,
}

impl Message {
    /// A session opens. Its worker is named by [`Downlink::welcome`].
    fn join(hello: Hello, downlink: Box<dyn Downlink>) -> Self {
        Self::Join(Box::new(hello), downlink)
    }

    /// What a worker says of itself.
    fn report(worker: WorkerId, status: Status) -> Self {
        Self::Input(Input::Reported { worker, status: Box::new(status) })
    }

    /// A session ended.
    fn left(worker: WorkerId, why: impl Into<String>) -> Self {
        Self::Input(Input::Left { worker, why: why.into() })
    }
}

/// Messages that wait for the driver. Whoever has one more waits for it: a coordinator that is slow slows its workers down, and its
/// memory stays bounded.
const INBOX: usize = 1024;

/// How sessions and users reach a driver. What is sent after it ended is dropped.
#[derive(Clone)]
pub struct Handle(Sender<Message>);

impl Handle {
    /// Says that the pruned pipeline is there. To be called by a thread, not a task.
    pub fn exported(&self) {
        self.put(Message::Input(Input::Exported));
    }

    /// Asks for the job to be stopped.
    pub async fn cancel(&self) {
        self.send(Message::Input(Input::Cancel)).await;
    }

    /// Where the job stands; none once the driver has ended.
    pub async fn view(&self) -> Option<View> {
        let (reply, view) = oneshot::channel();
        self.send(Message::View(reply)).await;
        view.await.ok()
    }

    /// Ends the driver, with the job as it stands. To be called by a thread, not a task.
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
