//! What a worker is asked to do.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use super::{Group, Opening, Part, PartId, SavedSums, Tally};
use crate::{Epoch, ShardId};

/// Names one thing a worker is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Order {
    /// Encode the prompts whose conditioning is not in the store. This order comes while the worker prepares.
    Encode,
    /// Close the group of this epoch and of every earlier one; drop the Grams reduced and not yet solved there.
    Abort {
        /// The last epoch to close.
        epoch: Epoch,
    },
    /// Load the pruned weights of committed packages until this number is applied. Ends sums and groups of earlier packages.
    Apply {
        /// Packages applied when done, counted from the first.
        packages: u32,
    },
    /// Start this tally, dropping the sums of earlier ones.
    Discard {
        /// The tally to start.
        tally: Tally,
    },
    /// Run the first shard on the dense model and report the exponents of all sites.
    Pilot,
    /// Add a shard to the sums.
    Calibrate {
        /// The sums it belongs to.
        tally: Tally,
        /// The shard.
        shard: ShardId,
    },
    /// Add sums that a worker has saved.
    Restore {
        /// The sums that they are added to.
        tally: Tally,
        /// The first of their shards.
        first: ShardId,
    },
    /// Join the group of an epoch.
    Form {
        /// The epoch.
        epoch: Epoch,
    },
    /// Go through the group's reductions, in their order.
    Reduce {
        /// The epoch.
        epoch: Epoch,
    },
    /// Solve a part as soon as its Gram has been reduced to this worker, and put the weights in the store.
    Solve {
        /// The epoch whose reduction brings the Gram.
        epoch: Epoch,
        /// The part.
        part: PartId,
    },
    /// Write the pruned pipeline.
    Export,
}

/// An [`Order`] with what is needed to follow it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// [`Order::Encode`]
    Encode {
        /// Another worker has found the conditioning of every prompt in the store: nothing is left to do.
        is_stored: bool,
    },
    /// [`Order::Abort`]
    Abort {
        /// The last epoch to close.
        epoch: Epoch,
    },
    /// [`Order::Apply`]
    Apply {
        /// Packages applied when done, counted from the first.
        packages: u32,
    },
    /// [`Order::Discard`]
    Discard {
        /// The tally to start.
        tally: Tally,
    },
    /// [`Order::Pilot`]
    Pilot {
        /// The shard to run.
        shard: ShardId,
    },
    /// [`Order::Calibrate`]; a tally newer than the worker's own starts it from zero.
    Calibrate {
        /// The sums it belongs to.
        tally: Tally,
        /// The shard.
        shard: ShardId,
        /// What is gathered.
        opening: Arc<Opening>,
    },
    /// [`Order::Restore`]; a tally newer than the worker's own starts it from zero.
    Restore {
        /// The sums that they are added to.
        tally: Tally,
        /// What is added.
        saved: Arc<SavedSums>,
        /// What is gathered.
        opening: Arc<Opening>,
    },
    /// [`Order::Form`]; a worker whose sums are not exactly `holds` refuses by a failed group.
    Form {
        /// The sums to reduce.
        tally: Tally,
        /// The shards that these sums consist of.
        holds: Arc<BTreeSet<ShardId>>,
        /// The group.
        group: Arc<Group>,
    },
    /// [`Order::Reduce`]
    Reduce {
        /// The epoch.
        epoch: Epoch,
    },
    /// [`Order::Solve`]
    Solve {
        /// The epoch whose reduction brings the Gram.
        epoch: Epoch,
        /// The rows to solve.
        part: Arc<Part>,
    },
    /// [`Order::Export`]
    Export,
}

impl Command {
    /// The command's name.
    pub fn order(&self) -> Order {
        match self {
            Self::Encode { .. } => Order::Encode,
            Self::Abort { epoch } => Order::Abort { epoch: *epoch },
            Self::Apply { packages } => Order::Apply { packages: *packages },
            Self::Discard { tally } => Order::Discard { tally: *tally },
            Self::Pilot { .. } => Order::Pilot,
            Self::Calibrate { tally, shard, .. } => Order::Calibrate { tally: *tally, shard: *shard },
            Self::Restore { tally, saved, .. } => Order::Restore { tally: *tally, first: saved.first() },
            Self::Form { group, .. } => Order::Form { epoch: group.epoch },
            Self::Reduce { epoch } => Order::Reduce { epoch: *epoch },
            Self::Solve { epoch, part } => Order::Solve { epoch: *epoch, part: part.id },
            Self::Export => Order::Export,
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Encode => f.write_str("encoding"),
            Self::Abort { epoch } => write!(f, "abort of epoch {epoch}"),
            Self::Apply { packages } => write!(f, "applying {packages} packages"),
            Self::Discard { tally } => write!(f, "start of tally {}", tally.0),
            Self::Pilot => f.write_str("pilot"),
            Self::Calibrate { shard, .. } => write!(f, "shard {shard}"),
            Self::Restore { first, .. } => write!(f, "the saved sums from shard {first} on"),
            Self::Form { epoch } => write!(f, "group of epoch {epoch}"),
            Self::Reduce { epoch } => write!(f, "reduction of epoch {epoch}"),
            Self::Solve { part, .. } => write!(f, "solving part {part}"),
            Self::Export => f.write_str("export"),
        }
    }
}
