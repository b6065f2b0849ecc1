//! The plan of a job: which packages, shards and targets. A pure function of specification and inventory; the number of workers
//! has no part in it, so results do not depend on it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{LinearId, PackageId, ShardId, SiteId, Target};

/// Everything that decides a job's result besides the model and the prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Packages in the order in which they are pruned; none is empty.
    pub packages: Vec<Package>,
    /// Shards of calibration prompts, in order.
    pub shards: Vec<Shard>,
}

/// Consecutive units pruned together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Package {
    /// Its place in the order.
    pub id: PackageId,
    /// Indices into the inventory's units.
    pub units: Range<usize>,
    /// Sites whose Grams are gathered: those with a linear to prune.
    pub sites: Vec<SiteId>,
    /// Linears to prune, in inventory order.
    pub linears: Vec<LinearTarget>,
}

/// A linear and what it is to become.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinearTarget {
    /// Which linear.
    pub linear: LinearId,
    /// What it becomes.
    pub target: Target,
}

/// A fixed list of prompt ids, run as one batch: the unit of leasing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Its place in the order.
    pub id: ShardId,
    /// Ids of its prompts: their places in the job's prompt list.
    pub prompts: Range<u32>,
}
