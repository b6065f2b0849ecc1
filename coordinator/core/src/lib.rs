//! obsdiff's coordinator as pure functions: no clock, file or network, only values in and values out.

pub mod cost;
pub mod plan;

pub use cost::{MemoryNeeds, PackageCost, PlanCost, Tokens, Workload};
pub use plan::{PlanError, plan};
