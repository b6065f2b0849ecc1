//! The one thread that owns the device, and what it is asked to do.
//!
//! [`WorkerState`] takes commands from the session and keeps the worker's status; [`follow`] lets an [`Engine`] follow them, one at a
//! time, on the thread that calls it. Between them lie facts (`orders`) and the group's connection. A group is joined, and goes through
//! its reductions, on a thread of its own: an abort reaches a worker that waits for its peers, and a site is solved while the Grams of
//! others are on their way.

mod engine;
mod fake;
mod following;
mod keeping;
mod object;
mod orders;
mod part_store;
mod pieces;
mod pruned;
mod pruning;
mod reducing;
mod saving;
mod slices;
mod structures;
mod sums_store;
mod surveys;
mod tensors;
mod watch;
mod worker_state;

pub use engine::{AfterStep, Engine, Reducer, WorkError};
pub use fake::{CallHook, EngineCall, FakeEngine};
pub use following::{follow, follow_waiting};
pub use orders::Machine;
pub use part_store::{JobPartStore, MemoryPartStore, PartStore, PartStoreError};
pub use pruned::Pruned;
pub use pruning::{Exporter, PruningEngine};
pub use sums_store::SumsStore;
pub use tensors::PrunedTensors;
pub use watch::Watch;
pub use worker_state::{CloseOnDrop, GroupTimeouts, MeasuresSource, WorkerState};

#[cfg(test)]
mod tests;
