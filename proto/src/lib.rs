//! The types that every part of obsdiff shares: ids, the job specification, the inventory of a model, the plan made from
//! them, and the messages of the coordinator and a worker to each other.
//!
//! A leaf: it knows no numerics, files, clocks or networks. With the feature `wire` it also has the gRPC messages and services
//! (`wire`), and the conversions between them and these types.

mod causes;
mod counted;
mod digest;
mod encoding;
mod forward_flops;
mod ids;
mod inventory;
mod job;
mod lock;
mod measures;
pub mod message;
mod pattern;
mod plan;
pub mod session;
mod size;
mod structured;
mod targets;
pub mod view;
#[cfg(feature = "wire")]
pub mod wire;

pub use causes::causes;
pub use counted::counted;
pub use digest::{Digest, DigestError, Hasher, InputDigest};
pub use forward_flops::ForwardFlops;
pub use ids::{Epoch, LinearId, PackageId, ShardId, SiteId, StreamId, StructureId, WorkerId};
pub use inventory::{FixedLayer, Inventory, Joined, Linear, Site, Stream, Unit};
pub use job::{
    Accumulate, Allocation, Balance, BudgetBy, CalibrationSpec, ComputeType, Effort, EvaluationSpec,
    GramPrecision, HessianSpec, JobError, JobSpec, Method, ModelSpec, OutputSpec, PackagesSpec, Precision,
    Preset, ProbeSpec, SparsityRule, SparsitySpec, Weighting, WorkersSpec,
};
pub use lock::lock;
pub use measures::{GpuMemory, Measures, MemoryExcess, PrunedSoFar};
pub use pattern::{Pattern, PatternError, Target};
pub use plan::{Budget, LinearTarget, Package, Plan, Shard};
pub use size::{ByteSize, ByteSizeError};
pub use structured::{Features, HeadScore, OutputLayout, PartKind, Structure};
pub use targets::{Targets, glob};
