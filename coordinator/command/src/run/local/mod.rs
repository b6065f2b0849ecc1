//! A session with a worker of the same process: commands go straight to its state.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::time::Duration;

use obsdiff_coordinator::{Downlink, Handle};
use obsdiff_core::Dismissal;
use obsdiff_proto::WorkerId;
use obsdiff_proto::message::Command;
use obsdiff_worker::device::WorkerState;

/// How often a worker speaks that has nothing new to say.
const BEAT: Duration = Duration::from_secs(1);

/// Lets a worker take part in a job until it is dismissed or its state is closed; closes it then.
pub(super) fn attend(worker_state: &Arc<WorkerState>, coordinator: &Handle) -> Option<Dismissal> {
    // However it ends, the device must not wait for what nobody brings any more.
    let _closes = worker_state.close_on_drop();
    let mut why = session(worker_state, coordinator);
    // It was only thought to be gone: a machine that slept, or a process that was stopped for a while.
    while matches!(why, Some(Dismissal::Silent { .. })) {
        why = session(worker_state, coordinator);
    }
    why
}

/// One session; says why it was ended by the coordinator, or nothing where the worker state was closed or the coordinator is gone.
fn session(worker_state: &Arc<WorkerState>, coordinator: &Handle) -> Option<Dismissal> {
    let (named, name) = mpsc::channel();
    let (dismissed, dismissal) = mpsc::channel();
    coordinator.join(
        worker_state.hello(),
        Box::new(LocalLink { worker_state: worker_state.clone(), named, dismissed }),
    );
    // Whoever stands by gets no name.
    let Ok(worker) = name.recv() else { return dismissal.try_recv().ok() };
    report(worker_state, coordinator, worker, &dismissal)
}

fn report(
    worker_state: &WorkerState,
    coordinator: &Handle,
    worker: WorkerId,
    dismissal: &Receiver<Dismissal>,
) -> Option<Dismissal> {
    loop {
        let (status, version) = worker_state.status();
        coordinator.report(worker, status);
        let open = worker_state.wait(version, BEAT);
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
struct LocalLink {
    worker_state: Arc<WorkerState>,
    named: Sender<WorkerId>,
    dismissed: Sender<Dismissal>,
}

impl Downlink for LocalLink {
    fn welcome(&self, worker: WorkerId) {
        self.worker_state.set_worker_id(worker);
        // The session waits for it, unless its thread is gone.
        let _ = self.named.send(worker);
    }

    fn command(&self, command: Command) {
        self.worker_state.take(command);
    }

    fn dismiss(&self, why: Dismissal) {
        // As above.
        let _ = self.dismissed.send(why);
        self.worker_state.wake();
    }
}

#[cfg(test)]
mod tests;
