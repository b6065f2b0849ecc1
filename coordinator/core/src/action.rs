//! What goes into a step and what comes out.

use std::sync::Arc;
use std::time::Duration;

use obsdiff_proto::{PackageId, SiteId, WorkerId, counted};
use thiserror::Error;

use crate::{Command, Dismissed, Event, Exponents, Hello, Manifest, Reason, Status};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A session opened; `worker` is larger than that of every session before, of this life and earlier ones.
    Joined {
        /// The session's worker.
        worker: WorkerId,
        /// Its Hello.
        hello: Box<Hello>,
    },
    /// A session ended: the connection was lost, or the worker closed it.
    Left {
        /// The session's worker.
        worker: WorkerId,
        /// The transport's reason.
        why: String,
    },
    /// The coordinator stood still for so long, and takes in only now what came meanwhile.
    Resumed {
        /// For how long.
        pause: Duration,
    },
    /// A worker spoke: after every change, and at least every two seconds.
    Reported {
        /// Who.
        worker: WorkerId,
        /// Its status.
        status: Box<Status>,
    },
    /// [`Action::Commit`] is durable.
    Committed {
        /// The package.
        package: PackageId,
    },
    /// [`Action::Commit`] failed; it may still have become durable.
    CommitFailed {
        /// The package.
        package: PackageId,
        /// The store's error.
        error: String,
    },
    /// The pruned pipeline is there: an earlier life had it written.
    Exported,
    /// Time passed; wanted every [`crate::TICK`].
    Tick,
    /// A user wants the job to stop.
    Cancel,
}

/// Something to do, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a command over a worker's session. One that cannot be sent may be dropped.
    Send {
        /// The worker that gets it.
        worker: WorkerId,
        /// What.
        command: Command,
    },
    /// Send a worker the reason, then close its session. Later messages from it are ignored.
    Dismiss {
        /// The worker.
        worker: WorkerId,
        /// Why.
        why: Dismissal,
    },
    /// Put the manifest, atomically, then answer [`Input::Committed`] or [`Input::CommitFailed`].
    Commit(Arc<Manifest>),
    /// Save the exponents for the next life, so that shards held for the first package outlive this one. No answer is waited for:
    /// manifests have them too, and the pilot would find them again.
    Save(Arc<Exponents>),
    /// Save the kind of hardware of the job's workers for the next life. No answer is waited for: manifests have it too.
    SaveHardware(String),
    /// Remove saved sums from the store: no package needs them any more. No answer is waited for.
    ForgetSums,
    /// Log it, show it.
    Emit(Event),
    /// The job is over: nothing more will come.
    Finish(Outcome),
}

/// Why a worker is sent away.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Dismissal {
    /// It sent nothing.
    #[error("it sent nothing for {seconds} s")]
    Silent {
        /// Seconds since it spoke.
        seconds: u64,
    },
    /// Busy without progress.
    #[error("no progress for {seconds} s")]
    Stalled {
        /// Seconds since it moved.
        seconds: u64,
    },
    /// The same process opened another session.
    #[error("came back as worker {0}")]
    Replaced(WorkerId),
    /// It drained, and nothing waits for it.
    #[error("drained")]
    Drained,
    /// It sent something impossible.
    #[error("{0}")]
    Refused(String),
    /// It fails again and again where others may not.
    #[error("failed too often, the last time at {0}")]
    Useless(String),
    /// Its results could differ in bits from those of the job's other workers.
    #[error(
        "the job runs on {job} and this worker on {worker}, whose results may differ in bits \
         (a new job with workers.mixed_hardware = true takes both)"
    )]
    OtherHardware {
        /// The kind of the job's workers.
        job: String,
        /// The worker's own.
        worker: String,
    },
    /// The job is over.
    #[error("the job is over: {0}")]
    Over(Outcome),
}

impl From<&Dismissal> for Dismissed {
    fn from(dismissal: &Dismissal) -> Self {
        let reason = match dismissal {
            Dismissal::Silent { .. } => Reason::Silent,
            Dismissal::Stalled { .. } => Reason::Stalled,
            Dismissal::Replaced(_) => Reason::Replaced,
            Dismissal::Drained => Reason::Drained,
            Dismissal::Refused(_) => Reason::Refused,
            Dismissal::Useless(_) => Reason::Useless,
            Dismissal::OtherHardware { .. } => Reason::OtherHardware,
            Dismissal::Over(Outcome::Done) => Reason::Done,
            Dismissal::Over(Outcome::Cancelled) => Reason::Cancelled,
            Dismissal::Over(Outcome::Failed(_)) => Reason::Failed,
        };
        Self { reason, words: dismissal.to_string() }
    }
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Outcome {
    /// The pruned pipeline is written.
    #[error("done")]
    Done,
    /// A user stopped it.
    #[error("cancelled")]
    Cancelled,
    /// It failed; what is committed stays, and the job can be resumed.
    #[error("{0}")]
    Failed(Failure),
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Failure {
    /// The store did not take a manifest.
    #[error("the manifest of package {package} could not be stored in {tries} tries: {error}")]
    Store {
        /// The package.
        package: PackageId,
        /// How often it was tried.
        tries: u32,
        /// The last error.
        error: String,
    },
    /// Something that goes wrong until somebody sets it right where the worker runs.
    #[error("{what}: {error}")]
    Environment {
        /// What.
        what: String,
        /// The error.
        error: String,
    },
    /// Something that goes wrong every time.
    #[error("{what}: {error}")]
    Fatal {
        /// What.
        what: String,
        /// The error.
        error: String,
    },
    /// Something failed too often.
    #[error("{what} failed {}, the last time at worker {worker}: {error}", counted(*tries as usize, "time"))]
    TooOften {
        /// What.
        what: String,
        /// How often.
        tries: u32,
        /// The last to try.
        worker: WorkerId,
        /// The last error.
        error: String,
    },
    /// Workers cannot reach each other.
    #[error("{tries} groups in a row failed: {error}")]
    Groups {
        /// How many.
        tries: u32,
        /// The last error.
        error: String,
    },
    /// No exponent is low enough.
    #[error("the Gram of site {site} overflows with every exponent tried, down to {exponent}")]
    Overflow {
        /// The site.
        site: SiteId,
        /// The last exponent tried.
        exponent: i32,
    },
    /// Another coordinator runs the job from the same store.
    #[error(
        "another coordinator has taken over the job and its store, as the one of life {life}: this one stops, so that only one decides"
    )]
    Superseded {
        /// The other one's life.
        life: u32,
    },
    /// Nobody is left to work.
    #[error("no worker for {seconds} s{last}")]
    Alone {
        /// Seconds without a worker.
        seconds: u64,
        /// Why the last one left, if one was there.
        last: String,
    },
}
