//! A session with a worker of the same process: commands go straight to its desk.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::time::Duration;

use obsdiff_coordinator::{Downlink, Handle};
use obsdiff_core::Dismissal;
use obsdiff_proto::WorkerId;
use obsdiff_proto::message::Command;
use obsdiff_worker::device::Desk;

/// How often a worker speaks that has nothing new to say.
const BEAT: Duration = Duration::from_secs(1);

/// Lets a desk's worker take part in a job until it is dismissed or its desk is closed; closes it then.
pub(super) fn attend(desk: &Arc<Desk>, coordinator: &Handle) -> Option<Dismissal> {
    // However it ends, the device must not wait for what nobody brings any more.
    let _closes = Closes(desk);
    let mut why = session(desk, coordinator);
    // It was only thought to be gone: a machine that slept, or a process that was stopped for a while.
    while matches!(why, Some(Dismissal::Silent { .. })) {
        why = session(desk, coordinator);
    }
    why
}

struct Closes<'a>(&'a Desk);

impl Drop for Closes<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// One session; says why it was ended by the coordinator, or nothing where the desk was closed or the coordinator is gone.
fn session(desk: &Arc<Desk>, coordinator: &Handle) -> Option<Dismissal> {
    let (named, name) = mpsc::channel();
    let (dismissed, dismissal) = mpsc::channel();
    coordinator.join(desk.hello(), Box::new(Link { desk: desk.clone(), named, dismissed }));
    // Whoever stands by gets no name.
    let Ok(worker) = name.recv() else { return dismissal.try_recv().ok() };
    report(desk, coordinator, worker, &dismissal)
}

fn report(
    desk: &Desk,
    coordinator: &Handle,
    worker: WorkerId,
    dismissal: &Receiver<Dismissal>,
) -> Option<Dismissal> {
    loop {
        let (status, version) = desk.status();
        coordinator.report(worker, status);
        let open = desk.wait(version, BEAT);
        match dismissal.try_recv() {
            Ok(why) => return Some(why),
            Err(TryRecvError::Disconnected) => return None,
            Err(TryRecvError::Empty) if open => {}
            Err(TryRecvError::Empty) => {
                coordinator.left(worker, "the worker ended");
                return None;
            }
        }
    }
}

/// The coordinator's end.
struct Link {
    desk: Arc<Desk>,
    named: Sender<WorkerId>,
    dismissed: Sender<Dismissal>,
}

impl Downlink for Link {
    fn welcome(&self, worker: WorkerId) {
        self.desk.named(worker);
        // The session waits for it, unless its thread is gone.
        let _ = self.named.send(worker);
    }

    fn command(&self, command: Command) {
        self.desk.take(command);
    }

    fn dismiss(&self, why: Dismissal) {
        // As above.
        let _ = self.dismissed.send(why);
        self.desk.wake();
    }
}

#[cfg(test)]
mod tests;
