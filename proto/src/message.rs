//! The messages of the coordinator and a worker to each other.
//!
//! A worker always sends the same thing: its whole [`Status`]. A status only grows (within one tally, one epoch and one
//! life of a worker), so one that is lost, late, repeated or out of order does no harm: the next one heals it. The coordinator
//! answers with [`Command`]s, each of them idempotent: a worker that has already done what one asks only reports it again.
//!
//! What the coordinator counts on:
//! - A worker follows its orders in any sequence in which they can be followed, and shows those it has not finished in [`Status::in_hand`].
//! - `applied`, the tally and the epoch of its group only grow. An order of an older tally or epoch is dropped. A newer tally starts
//!   the sums from zero; a newer epoch drops the groups before it and what they brought.
//! - A shard once begun is added to its end, or the sums are spoiled. They stay until a newer tally or [`Order::Apply`], also once reduced.
//! - Sums that a worker says it has saved stay in the store until it has saved others that contain them, and has added to these.
//! - A received Gram stays until its parts are solved, its group is aborted, or a newer group is joined.
//! - When the connection is lost, a worker forgets orders that it has not begun, continues with the others, and reports in its next
//!   [`Hello`] what it holds. Commands of an earlier connection are dropped.

mod order;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

pub use crate::encoding::Encoding;
use crate::{Epoch, LinearId, Measures, PackageId, ShardId, SiteId, WorkerId};
pub use order::{Command, Order};

/// The power of two by which a site's observations are scaled before they are rounded to integers.
pub type Exponents = BTreeMap<SiteId, i32>;

/// Numbers a worker's sums: all its Grams of one package. Sums of a new tally start from zero; a worker's tallies only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tally(pub u64);

/// A piece of solving that one worker does: a whole site, some rows of a site that the plan splits, or a structure whose heads or
/// neurons go. Packages may share sites (a survey gathers those of the package that follows), so a part names its package too: what
/// is solved for one package never counts for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartId {
    /// The package that it is solved for.
    pub package: PackageId,
    /// The site whose Gram it needs; of a structure's, the first.
    pub site: SiteId,
    /// Which of the site's parts, from 0.
    pub index: u32,
}

impl fmt::Display for PartId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} of package {}", self.site, self.index, self.package)
    }
}

/// Some rows of one linear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Which linear.
    pub linear: LinearId,
    /// Its output features.
    pub rows: Range<usize>,
}

/// A part: the smallest piece of solving that one worker does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub id: PartId,
    /// The sites that its slices read, whose Grams are needed. Only structures have more than one.
    pub sites: Vec<SiteId>,
    /// Rows to prune, in inventory order.
    pub slices: Vec<Slice>,
    /// Arithmetic of solving it: n^3 + rows * n^2 for each site.
    pub cost: u64,
}

/// What the manifest records of a part whose weights are in the store: how to find and check them. The core only passes it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt(pub Arc<str>);

/// A part whose weights are in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Solved {
    /// The exponents that its Grams were gathered with; 0 or nothing for sums that need none.
    pub exponents: Exponents,
    /// What the manifest records of it.
    pub receipt: Receipt,
}

/// The record that makes a package's pruned weights count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The package.
    pub package: PackageId,
    /// Exponents of all sites, those of later packages as far as they are known.
    pub exponents: Exponents,
    /// The kind of hardware that solved it; none where kinds are mixed.
    pub hardware: Option<String>,
    /// Where each part's weights are, by digest.
    pub parts: BTreeMap<PartId, Receipt>,
}

/// The sums to gather for a package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The package. All packages before it are applied to the weights.
    pub package: PackageId,
    /// Exponents of the package's sites.
    pub exponents: Exponents,
}

/// A collective of one epoch and what it reduces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its epoch, never used for another group.
    pub epoch: Epoch,
    /// The package whose Grams it reduces.
    pub package: PackageId,
    /// Its workers; a worker's place is its rank.
    pub members: Vec<WorkerId>,
    /// Reductions in the order in which every rank does them. Sums stay as they were: roots receive into other memory.
    pub reductions: Vec<Reduction>,
    /// Who solves each part.
    pub owners: BTreeMap<PartId, WorkerId>,
}

/// One site's way to those who solve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reduction {
    /// The site whose Gram is summed over the ranks.
    pub site: SiteId,
    /// Who needs it: one worker (reduce), or several when the site is split (all-reduce).
    pub roots: Vec<WorkerId>,
}

/// The first message of a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Drawn at random when the process started. It shows whether a worker is new or has reconnected.
    pub instance: u128,
    /// Measured speed in 10^6 floating-point operations per second: of bf16 products on its GPU, or else of f32 ones on its processor.
    pub speed: u64,
    /// A description of the kind of its hardware: workers of one kind find the same bits.
    pub hardware: String,
    /// Exponents that the sums in `status` were gathered with.
    pub exponents: Exponents,
    /// Its status. `in_hand` names only orders that it has begun; the others were lost with the connection.
    pub status: Status,
}

/// All that a worker knows of its own work. `Default` is a worker that has just started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Grows with each step of work, so that a busy worker is not taken for a stuck one.
    pub progress: u64,
    /// It reads, hashes and loads what the job needs before it can take other orders than [`Order::Encode`]. Once it is ready it stays so.
    pub preparing: bool,
    /// How far it is with the conditioning of the job's prompts; only grows.
    pub encoding: Encoding,
    /// Packages applied to its weights, counted from the first.
    pub applied: u32,
    /// Its sums.
    pub sums: Sums,
    /// How long a shard takes it, once it has run one.
    pub pace: Option<Duration>,
    /// The last group it was asked to join or to close.
    pub group: Option<GroupStatus>,
    /// The pilot's exponents, until a later order shows that they arrived.
    pub pilot: Option<Arc<Exponents>>,
    /// Parts that this worker solved since it last applied a package; their weights are in the store.
    pub solved: BTreeMap<PartId, Solved>,
    /// The pruned pipeline is written.
    pub exported: bool,
    /// The last thing that went wrong.
    pub trouble: Option<Trouble>,
    /// Orders taken and not finished.
    pub in_hand: BTreeSet<Order>,
    /// It was asked to stop (SIGTERM) and wants to leave.
    pub draining: bool,
    /// It ends a shard and saves its sums before it leaves.
    pub saving: bool,
    /// What it measured of its work; nothing of a worker that measures nothing.
    pub measures: Measures,
}

/// Sums as they lie in the job's store. Any worker can add them to its own in place of running their shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedSums {
    /// The shards that they consist of: one at least.
    pub shards: BTreeSet<ShardId>,
    /// How they are found and checked.
    pub receipt: Receipt,
}

/// The shards that a worker's Grams consist of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    /// Which sums.
    pub tally: Tally,
    /// The package they are gathered for; none before the first shard.
    pub package: Option<PackageId>,
    /// Shards wholly added.
    pub held: BTreeSet<ShardId>,
    /// A shard was added only in part, or a Gram overflowed: these sums cannot be used.
    pub spoiled: bool,
    /// What the worker put into the store last, of these sums.
    pub saved: Option<Arc<SavedSums>>,
}

/// How far a worker is with a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// The group's epoch.
    pub epoch: Epoch,
    /// How far it is.
    pub stage: GroupStage,
    /// Sites whose reduced Grams this worker received as a root.
    pub received: BTreeSet<SiteId>,
}

/// How far a worker is with a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupStage {
    /// Connecting to its peers.
    Forming,
    /// Connected to all of them.
    Formed,
    /// All reductions are done.
    Reduced,
    /// Given up: a peer died, was not reached in time, or the sums were not those asked for.
    Failed(String),
    /// Closed as the coordinator asked.
    Aborted,
}

/// Something that went wrong at a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// Grows with each trouble of this worker.
    pub serial: u64,
    /// The order that it happened to; it is no longer in hand.
    pub order: Order,
    /// What happened.
    pub fault: Fault,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A Gram's diagonal left the range of its integers.
    Overflow {
        /// The Gram's site.
        site: SiteId,
        /// The exponent it was gathered with.
        exponent: i32,
    },
    /// It may go well another time.
    Transient(String),
    /// It fails until a problem of the worker's host is solved: a permission, a limit, a file system, a model that was changed.
    Environment(String),
    /// It would go wrong every time.
    Fatal(String),
}

impl SavedSums {
    /// The first of their shards, which names them among those that are not shared.
    pub fn first(&self) -> ShardId {
        self.shards.first().copied().unwrap_or(ShardId(0))
    }
}

impl GroupStage {
    /// Whether the group is over for this worker without having reduced everything.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Failed(_) | Self::Aborted)
    }
}
