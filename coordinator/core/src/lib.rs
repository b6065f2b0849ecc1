//! obsdiff's coordinator as pure functions: [`Core::step`] takes in what happened and returns what is to be done.
//!
//! Nothing here does I/O, reads a clock, draws a random number or waits. The state consists of facts about workers and the open
//! package; a phase is what the facts amount to, and an order to a worker is what follows from them. An order is sent once, and again
//! when the worker does not show it; a worker always reports all it knows; so whatever is lost, late, repeated or out of order on the
//! way heals by the next report.
//!
//! A shard counts exactly once because (1) the ledger gives it one holder at most, (2) a worker forms a group only if its
//! sums are exactly the shards that the ledger has for it, and (3) a group reduces only while every shard is held by one of its members.

mod action;
pub mod assignment;
pub mod cost;
mod event;
mod hardware;
mod invariants;
mod job;
mod leases;
mod ledger;
mod membership;
mod orders;
mod patience;
mod phase;
pub mod plan;
pub mod split;
mod state;
mod step;
mod trouble;
mod view;

use std::time::Duration;

pub use action::{Action, Dismissal, Failure, Input, Outcome};
pub use cost::{MemoryNeeds, PackageCost, PlanCost, SurveyWork, Tokens, Workload};
pub use event::Event;
pub use invariants::Violation;
pub use job::{InvalidJob, Job, Options, StoredSums};
pub use obsdiff_proto::message::{
    Command, Encoding, Exponents, Fault, Group, GroupStage, GroupStatus, Hello, Manifest, Opening, Order,
    Part, PartId, Receipt, Reduction, SavedSums, Slice, Solved, Status, Sums, Tally, Trouble,
};
pub use obsdiff_proto::session::{Dismissed, Reason};
pub use obsdiff_proto::view::{Ending, Phase, View, WorkerView};
pub use plan::{PlanError, fewest_packages, packages_within, plan};
pub use state::Core;

/// How often [`Input::Tick`] is wanted: waiting times are kept to within it.
pub const TICK: Duration = Duration::from_millis(500);
