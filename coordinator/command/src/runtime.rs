//! The threads that wait for networks and stores.

use std::io;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;

use tokio::runtime::{Builder, Runtime};

use crate::{Error, Result};

/// Threads of a runtime that drive its tasks.
const WORKERS: usize = 2;
/// Threads of a runtime that wait for files.
const BLOCKING: usize = 8;

/// A runtime for what waits on networks and stores.
///
/// # Errors
/// When its threads cannot be started.
pub fn runtime() -> Result<Runtime> {
    // The runtime panics if the system gives it no thread, so this is tried before.
    try_threads(WORKERS + BLOCKING).map_err(|e| Error::thread(&e))?;
    Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()
        .map_err(Error::System)
}

/// Starts this number of threads at once, and ends them.
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
