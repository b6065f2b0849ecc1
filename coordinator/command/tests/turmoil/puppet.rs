//! Threads in simulated time. A worker's device and its joining of groups are threads; here each is a puppet, which runs only while its
//! host's runtime stands still, and stands still while the runtime waits for it: what a host does is one sequence, as chance and time
//! have it in the simulation alone.

use std::cell::{Cell, RefCell};
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use tokio::runtime::Handle;

/// What a puppet waits for, on its host's runtime.
type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    /// By which this thread is moved, where it is a puppet.
    static STRINGS: RefCell<Option<Strings>> = const { RefCell::new(None) };
    /// Puppets of this thread's simulation that panicked.
    static PANICS: Cell<u32> = const { Cell::new(0) };
}

/// A puppet's end.
struct Strings {
    waits: Sender<Wait>,
    goes: Receiver<()>,
}

/// The runtime's end. Dropped with the host, it ends the thread wherever it waits.
struct Player {
    go: Option<Sender<()>>,
    waits: Receiver<Wait>,
    thread: Option<JoinHandle<()>>,
}

/// Unwinds a puppet whose host is gone.
struct Killed;

/// Starts a thread on the host whose runtime this is.
pub(crate) fn start(body: impl FnOnce() + Send + 'static) {
    let (go, goes) = channel();
    let (asks, waits) = channel();
    let host = Handle::current();
    let thread = thread::spawn(move || {
        // Its clock is the host's.
        let _inside = host.enter();
        let first = goes.recv();
        STRINGS.set(Some(Strings { waits: asks, goes }));
        if first.is_ok() {
            body();
        }
    });
    tokio::spawn(Player { go: Some(go), waits, thread: Some(thread) }.play());
}

/// Waits in simulated time. For puppets only.
pub(crate) fn wait<T: Send + 'static>(what: impl Future<Output = T> + Send + 'static) -> T {
    STRINGS.with_borrow(|strings| {
        let strings = strings.as_ref().expect("only puppets wait in simulated time");
        let (found, value) = channel();
        let wait = async move { drop(found.send(what.await)) };
        let waited = strings.waits.send(Box::pin(wait)).is_ok() && strings.goes.recv().is_ok();
        match value.try_recv() {
            Ok(value) if waited => value,
            _ => resume_unwind(Box::new(Killed)),
        }
    })
}

/// Puppets that panicked since the last call.
pub(crate) fn take_panics() -> u32 {
    PANICS.take()
}

impl Player {
    async fn play(mut self) {
        while let Some(wait) = self.turn() {
            wait.await;
        }
    }

    /// Lets the puppet run until it waits; none when it has ended.
    fn turn(&mut self) -> Option<Wait> {
        self.go.as_ref()?.send(()).ok()?;
        self.waits.recv().ok()
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        self.go = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err_and(|panic| !panic.is::<Killed>())
        {
            PANICS.set(PANICS.get() + 1);
        }
    }
}
