//! Reports of a job for its users.

mod details;
mod words;

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::{Epoch, PackageId, WorkerId};

pub use details::{
    BlockFigures, Grid, JobDetails, JobRequest, PastEvent, PhaseTime, WorkerLeft, WorkerMemory,
};

/// A coordinator's report of itself and its job.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JobReport {
    /// The coordinator's release.
    pub release: String,
    /// The pipeline that is pruned.
    pub model: String,
    /// Where the pruned one goes.
    pub output: String,
    /// Since this coordinator started; whole milliseconds.
    #[serde(rename = "elapsed_seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
    /// The estimated time until the job is done, over all packages, if there is an estimate; whole milliseconds.
    #[serde(rename = "left_seconds", serialize_with = "seconds_where_known")]
    pub left: Option<Duration>,
    /// What the job asks for.
    #[serde(rename = "job")]
    pub request: JobRequest,
    /// Where the job stands.
    #[serde(flatten)]
    pub view: View,
    /// More about it. Empty in messages to watchers, who get each event when it happens.
    #[serde(flatten)]
    pub details: JobDetails,
}

/// A message to the watchers of a job.
#[derive(Clone, Debug, PartialEq)]
pub enum WatchMessage {
    /// The job's state.
    Report(Box<JobReport>),
    /// Something that happened, in words.
    Event(String),
}

/// The state of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct View {
    /// The current phase.
    pub phase: Phase,
    /// Packages planned.
    pub packages: usize,
    /// So many of them, the first ones, are surveys: nothing is pruned yet, but found out what pruning would cost.
    pub surveys: usize,
    /// Packages committed.
    #[serde(rename = "packages_committed")]
    pub committed: u32,
    /// The package being pruned.
    pub package: Option<PackageId>,
    /// Shards of a package.
    pub shards: usize,
    /// Shards in some worker's sums.
    #[serde(rename = "shards_held")]
    pub held: usize,
    /// Parts of the open package.
    pub parts: usize,
    /// Parts whose weights are in the store.
    #[serde(rename = "parts_solved")]
    pub solved: usize,
    /// The epoch of the open group.
    pub epoch: Option<Epoch>,
    /// Workers, by id.
    pub workers: Vec<WorkerView>,
    /// How the job ended.
    pub ending: Option<Ending>,
}

/// The state of a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WorkerView {
    /// The worker.
    pub worker: WorkerId,
    /// Packages applied.
    #[serde(rename = "packages_applied")]
    pub applied: u32,
    /// Shards leased to it.
    #[serde(rename = "shards_leased")]
    pub leased: usize,
    /// Shards in its sums.
    #[serde(rename = "shards_held")]
    pub held: usize,
    /// How long a shard takes it.
    #[serde(rename = "shard_seconds", serialize_with = "seconds_where_known")]
    pub pace: Option<Duration>,
    /// It is about to leave.
    pub draining: bool,
    /// It reads, hashes and encodes what the job needs, and takes no work yet.
    pub preparing: bool,
    /// Parts of the open package that it has to solve.
    #[serde(rename = "parts_to_solve")]
    pub solving: usize,
    /// What it does.
    pub activity: Activity,
}

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activity {
    /// It is about to leave.
    Leaves,
    /// It reads and checks what the job needs.
    Prepares,
    /// It encodes the prompts, for all workers.
    Encodes,
    /// It loads the weights of finished packages.
    Applies,
    /// It runs the first shard, to find the exponents for all workers.
    Pilots,
    /// It runs shards.
    Calibrates,
    /// It adds saved sums to its own.
    Restores,
    /// It sums Grams with the others of its group.
    Reduces,
    /// It solves parts.
    Solves,
    /// It writes the pruned pipeline.
    Exports,
    /// Nothing is to be done by it now.
    Waits,
}

/// The phases of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Finding exponents.
    Pilot,
    /// Shards are run.
    Calibrate,
    /// A group forms, and Grams go to their owners.
    Reduce,
    /// Parts are solved.
    Solve,
    /// The manifest is on its way to the store.
    Commit,
    /// No worker has applied the committed weights yet.
    Apply,
    /// The pipeline is written.
    Export,
    /// Nothing: the job is over.
    Over,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "reason", rename_all = "snake_case")]
pub enum Ending {
    /// The pruned pipeline is written.
    Done,
    /// A user stopped it.
    Cancelled,
    /// It failed for this reason; it can be resumed.
    Failed(String),
}

fn seconds<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_f64(time.as_secs_f64())
}

fn seconds_where_known<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.as_secs_f64()).serialize(to)
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Pilot => "pilot",
            Self::Calibrate => "calibrate",
            Self::Reduce => "reduce",
            Self::Solve => "solve",
            Self::Commit => "commit",
            Self::Apply => "apply",
            Self::Export => "export",
            Self::Over => "over",
        })
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Cancelled => f.write_str("cancelled"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}
