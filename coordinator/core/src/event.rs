//! What users want to know of a job's course.

use std::time::Duration;

use obsdiff_proto::{Epoch, PackageId, ShardId, SiteId, WorkerId, counted};
use thiserror::Error;

use crate::Dismissal;

/// What happens to the shards that are lost, and to those of them that saved sums have, in words.
fn run_again(lost: &[ShardId], saved: usize) -> String {
    let are = |count| if count == 1 { "is" } else { "are" };
    let again = format!("{} {} run again", counted(lost.len(), "shard"), are(lost.len()));
    if saved == 0 { again } else { format!("{again}, and {saved} {} in the store", are(saved)) }
}

/// Something that users want to know.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Event {
    /// A worker joined.
    #[error("worker {worker} joined with {} of the open package", counted(*kept, "shard"))]
    Joined {
        /// Who.
        worker: WorkerId,
        /// Shards of the open package that it brought and that count.
        kept: usize,
    },
    /// A worker joined that cannot take orders yet.
    #[error("worker {worker} joined and prepares")]
    Preparing {
        /// Who.
        worker: WorkerId,
    },
    /// A worker encodes the prompts, while others wait for it.
    #[error("worker {worker} encodes the prompts")]
    Encodes {
        /// Who.
        worker: WorkerId,
    },
    /// A worker that prepared takes orders from now on.
    #[error("worker {worker} is ready")]
    Ready {
        /// Who.
        worker: WorkerId,
    },
    /// Workers of another kind of hardware stand by; reported once for each kind.
    #[error("workers on {worker} stand by: the job runs on {job}, and workers.mixed_hardware is not set")]
    StandingBy {
        /// The kind of the job's workers.
        job: String,
        /// The kind of those that stand by.
        worker: String,
    },
    /// A worker left.
    #[error("worker {worker} left ({why}), last heard of {:.1} s before; {}", quiet.as_secs_f64(), run_again(lost, *saved))]
    Left {
        /// Who.
        worker: WorkerId,
        /// Why.
        why: String,
        /// How long it had sent nothing.
        quiet: Duration,
        /// Shards lost with it, finished ones and leased ones.
        lost: Vec<ShardId>,
        /// Further ones that saved sums have.
        saved: usize,
        /// Whether it had asked to leave.
        drained: bool,
    },
    /// A worker's sums were dropped.
    #[error("worker {worker} starts its sums again ({why}); {}", run_again(lost, *saved))]
    Discarded {
        /// Whose.
        worker: WorkerId,
        /// Why.
        why: String,
        /// Shards lost.
        lost: Vec<ShardId>,
        /// Further ones that saved sums have.
        saved: usize,
    },
    /// A worker has put its sums into the store.
    #[error("worker {worker} has saved its sums of {}", counted(*shards, "shard"))]
    Saved {
        /// Who.
        worker: WorkerId,
        /// How many shards they consist of.
        shards: usize,
    },
    /// A worker adds saved sums to its own.
    #[error("worker {worker} restores {} from saved sums", counted(*shards, "shard"))]
    Restores {
        /// Who.
        worker: WorkerId,
        /// How many shards they consist of.
        shards: usize,
    },
    /// Saved sums could not be used.
    #[error("worker {worker} cannot restore saved sums ({error}); {}", run_again(lost, 0))]
    Unrestored {
        /// Who tried.
        worker: WorkerId,
        /// Why.
        error: String,
        /// The shards of these sums.
        lost: Vec<ShardId>,
    },
    /// A group is forming.
    #[error("{} group {epoch}, to sum Grams", if *members == 1 { "1 worker forms".to_owned() } else { format!("{members} workers form") })]
    Grouped {
        /// Its epoch.
        epoch: Epoch,
        /// Its size.
        members: usize,
    },
    /// A group has formed: its ranks reduce.
    #[error("group {epoch} is connected and sums its Grams")]
    Formed {
        /// Its epoch.
        epoch: Epoch,
    },
    /// Every Gram of a group is where it is solved.
    #[error("group {epoch} has summed its Grams")]
    Arrived {
        /// The group's epoch.
        epoch: Epoch,
    },
    /// A group was given up.
    #[error("group {epoch} is given up: {why}")]
    Broken {
        /// Its epoch.
        epoch: Epoch,
        /// Why.
        why: String,
    },
    /// A Gram overflowed.
    #[error(
        "the Gram of site {site} overflowed: its exponent becomes {exponent}, and package {package} is run again"
    )]
    Lowered {
        /// The package.
        package: PackageId,
        /// The site.
        site: SiteId,
        /// Its new exponent.
        exponent: i32,
    },
    /// Something failed and is tried again.
    #[error("{what} failed {}: {error}", counted(*tries as usize, "time"))]
    Retried {
        /// What.
        what: String,
        /// How often.
        tries: u32,
        /// The last error.
        error: String,
    },
    /// A package is committed.
    #[error("package {package} is committed")]
    Committed {
        /// The package.
        package: PackageId,
    },
}

impl Event {
    /// Whether something went wrong.
    pub fn is_fault(&self) -> bool {
        match self {
            Self::Left { why, .. } => *why != Dismissal::Drained.to_string(),
            Self::StandingBy { .. }
            | Self::Discarded { .. }
            | Self::Unrestored { .. }
            | Self::Broken { .. }
            | Self::Lowered { .. }
            | Self::Retried { .. } => true,
            Self::Joined { .. }
            | Self::Preparing { .. }
            | Self::Encodes { .. }
            | Self::Ready { .. }
            | Self::Saved { .. }
            | Self::Restores { .. }
            | Self::Grouped { .. }
            | Self::Formed { .. }
            | Self::Arrived { .. }
            | Self::Committed { .. } => false,
        }
    }
}
