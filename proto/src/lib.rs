//! The words every part of obsdiff shares: ids, the job specification, the inventory of a model and the plan made from them.
//!
//! A leaf: it knows no numerics, files, clocks or networks.

mod ids;
mod inventory;
mod job;
mod pattern;
mod plan;
mod size;
mod targets;

pub use ids::{Epoch, LinearId, PackageId, ShardId, SiteId, WorkerId};
pub use inventory::{Inventory, Linear, Site, Stream, Unit, UnitKind};
pub use job::{
    Accumulate, Balance, CalibrationSpec, ComputeType, EvaluationSpec, HessianSpec, JobError, JobSpec,
    Method, ModelSpec, OutputSpec, PackagesSpec, Precision, Rule, SparsitySpec, Weighting,
};
pub use pattern::{Pattern, PatternError, Target};
pub use plan::{LinearTarget, Package, Plan, Shard};
pub use size::{ByteSize, ByteSizeError};
pub use targets::Targets;
