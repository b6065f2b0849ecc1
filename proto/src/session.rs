//! The messages of one worker's session with the coordinator.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::message::{Command, Hello, Status};
use crate::{InputDigest, Inventory, JobSpec, Plan, WorkerId};

/// The version of the protocol. It grows with every change that an older release would misunderstand.
pub const PROTOCOL: u32 = 4;

/// A message of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WorkerEvent {
    /// First of all, and once.
    Hello(Box<Hello>),
    /// After every change, and at least once in every heartbeat interval.
    Status(Box<Status>),
}

/// A message of the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub enum CoordinatorEvent {
    /// Before the welcome: the worker is not needed now, for this reason. It stays until it is, or the job is over.
    StandBy(String),
    /// First of all but [`Self::StandBy`], and once: the worker is taken.
    Welcome(Box<Welcome>),
    /// Something to do.
    Command(Command),
    /// Last of all: the session is over.
    Dismissed(Dismissed),
    /// The coordinator is there. One of the workers that ask for it also gets the job's progress, to pass it on.
    Heartbeat(Option<JobProgress>),
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobProgress {
    /// The share of its work that is done, in percent: 100 once it is done, never before.
    pub percent: u8,
    /// The estimated time until it is done, if there is an estimate; whole milliseconds.
    pub left: Option<Duration>,
    /// Packages committed.
    pub committed: u32,
    /// Packages planned.
    pub packages: u32,
}

impl JobProgress {
    /// The same of a job that is done.
    pub fn done(self) -> Self {
        Self { percent: 100, left: Some(Duration::ZERO), committed: self.packages, packages: self.packages }
    }
}

/// The answer to [`Hello`].
#[derive(Clone, Debug, PartialEq)]
pub struct Welcome {
    /// The worker's number.
    pub worker: WorkerId,
    /// How often each side expects a message from the other; whole milliseconds.
    pub heartbeat: Duration,
    /// The job.
    pub briefing: Arc<Briefing>,
}

/// All that a worker needs to know of the job. The model must lie at the same path as for the coordinator.
#[derive(Clone, Debug, PartialEq)]
pub struct Briefing {
    /// What is asked.
    pub spec: JobSpec,
    /// What can be pruned.
    pub inventory: Inventory,
    /// What is pruned.
    pub plan: Plan,
    /// The model's files. A worker with other files is refused.
    pub inputs: Vec<InputDigest>,
    /// URL of the store that holds prompts and pruned weights.
    pub store: String,
}

/// Why a session is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dismissed {
    /// For the worker's process.
    pub reason: Reason,
    /// For people.
    pub words: String,
}

/// What a worker does after the end of its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It sent nothing for too long.
    Silent,
    /// Busy without progress for too long.
    Stalled,
    /// The same process opened another session.
    Replaced,
    /// It asked to leave, and may.
    Drained,
    /// It sent something impossible.
    Refused,
    /// It fails where others do not.
    Useless,
    /// The job is done.
    Done,
    /// The job was cancelled.
    Cancelled,
    /// The job failed.
    Failed,
    /// It speaks another protocol.
    Protocol,
    /// The coordinator stops, and will be back.
    Restarting,
    /// The job runs on another kind of hardware: the worker stands by.
    OtherHardware,
}

impl Reason {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Silent,
        Self::Stalled,
        Self::Replaced,
        Self::Drained,
        Self::Refused,
        Self::Useless,
        Self::Done,
        Self::Cancelled,
        Self::Failed,
        Self::Protocol,
        Self::Restarting,
        Self::OtherHardware,
    ];

    /// Whether the same process should open another session.
    pub fn may_return(self) -> bool {
        matches!(self, Self::Silent | Self::Stalled | Self::Restarting | Self::OtherHardware)
    }
}

impl fmt::Display for Dismissed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}
