//! How a rank leaves its group: in good order, or by stopping what runs. Either may block in NCCL, so it has a thread and a limit.

use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use obsdiff_engine::device::numbers::DeviceNumbers;
use obsdiff_proto::lock;

use super::departures::Departures;
use super::ffi::{CallError, Communicator, Gpu, Progress};
use super::staging::StagingLanes;
use crate::collective::CollectiveError;

/// How often NCCL is asked whether it is done.
const ASK: Duration = Duration::from_millis(1);

/// What is called with a sentence when NCCL does not let go of a group: its GPU is of no more use to this process.
pub type OnStuck = Arc<dyn Fn(&str) + Send + Sync>;

/// What a rank has of NCCL and of its GPU.
pub(super) struct Link {
    pub(super) gpu: Arc<Gpu>,
    pub(super) communicator: Communicator,
    /// Dropped after the communicator has ended, whose operations use its memory.
    pub(super) staging: StagingLanes,
    /// What else they use.
    pub(super) lent: Vec<DeviceNumbers>,
}

/// Groups that this process is leaving.
pub(super) struct Leaving {
    limit: Duration,
    on_stuck: OnStuck,
    groups: Mutex<usize>,
    changed: Condvar,
}

impl Leaving {
    /// Groups are left within this limit; `on_stuck` hears of one that is not.
    pub(super) fn new(limit: Duration, on_stuck: OnStuck) -> Self {
        Self { limit, on_stuck, groups: Mutex::new(0), changed: Condvar::new() }
    }

    /// Waits until earlier groups are left: two communicators at a time on one GPU may wait for each other. False where one is not.
    pub(super) fn wait(&self) -> bool {
        // A rank that leaves announces it to its peers, which may take as long as the coordinator is silent.
        let most = self.limit + Duration::from_secs(10);
        let waited = self.changed.wait_timeout_while(lock(&self.groups), most, |groups| *groups > 0);
        let (groups, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *groups == 0
    }

    /// Leaves a group, after so many calls or a fault. Returns at once; [`OnStuck`] is called where NCCL does not return in time.
    pub(super) fn leave(
        self: &Arc<Self>,
        link: Link,
        departures: Arc<Departures>,
        calls: u64,
        fault: Option<CollectiveError>,
    ) {
        *lock(&self.groups) += 1;
        let leaving = self.clone();
        let (well, why) = match &fault {
            None => (Some(calls), format!("it left after {calls} calls")),
            Some(fault) => (None, fault.to_string()),
        };
        let left = thread::Builder::new().name("leave a group".to_owned()).spawn(move || {
            leaving.stop(link, fault.is_none(), || departures.announce(well, why));
            *lock(&leaving.groups) -= 1;
            leaving.changed.notify_all();
        });
        if let Err(error) = left {
            // The link is lost with the closure, and NCCL goes on with it.
            self.stuck(&format!("the system gives no more threads ({error})"));
        }
    }

    /// Ends the communicator on a thread of its own while `announce` runs here.
    fn stop(&self, link: Link, well: bool, announce: impl FnOnce()) {
        let begun = Instant::now();
        let (done, ended) = mpsc::channel();
        let patience = self.limit / 2;
        let ending = thread::Builder::new().name("end of a communicator".to_owned()).spawn(move || {
            let Link { gpu, communicator, staging, lent } = link;
            if let Err(error) = gpu.bind().and_then(|()| end(communicator, well, patience)) {
                tracing::warn!(%error, "NCCL did not leave a group in good order");
            }
            drop((staging, lent));
            // Nobody listens any more where the limit is over.
            let _ = done.send(());
        });
        if let Err(error) = ending {
            return self.stuck(&format!("the system gives no more threads ({error})"));
        }
        announce();
        // An end without a word is a panic in NCCL's bindings: the same to us.
        if ended.recv_timeout(self.limit.saturating_sub(begun.elapsed())).is_err() {
            self.stuck(&format!("NCCL did not stop within {} s", self.limit.as_secs_f64()));
        }
    }

    fn stuck(&self, why: &str) {
        (self.on_stuck)(&format!("a group of GPUs cannot be left: {why}"));
    }
}

/// Ends a communicator: in good order if `well` and NCCL manages it within `patience`, else by stopping what runs. Current libraries
/// stop by revoking, after which an abort has nothing left to wait for.
fn end(mut communicator: Communicator, well: bool, patience: Duration) -> Result<(), CallError> {
    if well {
        let finalized = communicator.finalize();
        if let Ok(progress) = finalized
            && finished(&communicator, progress, patience)
        {
            return communicator.destroy().map(drop);
        }
    }
    let revoked = communicator.revoke();
    if let Ok(progress) = revoked {
        finished(&communicator, progress, patience);
    }
    communicator.abort().map(drop)
}

/// Waits until NCCL is done; false after `patience` or an error.
fn finished(communicator: &Communicator, mut progress: Progress, patience: Duration) -> bool {
    let begun = Instant::now();
    while progress == Progress::Running && begun.elapsed() < patience {
        thread::park_timeout(ASK);
        match communicator.progress() {
            Ok(now) => progress = now,
            Err(_) => return false,
        }
    }
    progress == Progress::Done
}
