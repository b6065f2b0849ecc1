//! The one thread that owns the device, and what it is asked to do.
//!
//! [`Desk`] takes commands from the session and keeps the worker's status; [`follow`] lets an [`Engine`] follow them, one at a time, on
//! the thread that calls it. Between them lie facts (`duties`) and the group's connection. A group is joined, and goes through its
//! reductions, on a thread of its own: an abort reaches a worker that waits for its peers, and a site is solved while the Grams of
//! others are on their way.

mod desk;
mod duties;
mod engine;
mod fake;
mod following;
mod object;
mod pruned;
mod pruning;
mod reducing;
mod shelf;
mod tensors;

pub use desk::{Desk, Patience};
pub use duties::Machine;
pub use engine::{Engine, Reducer, Step, WorkError};
pub use fake::{FakeEngine, Gate, Moment};
pub use following::{follow, follow_waiting};
pub use pruned::Pruned;
pub use pruning::{Exporter, PruningEngine, Watch};
pub use reducing::CHUNK;
pub use shelf::{MemoryShelf, Shelf, ShelfError, StoreShelf};
pub use tensors::PrunedTensors;

#[cfg(test)]
mod tests;
