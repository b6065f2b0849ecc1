//! An obsdiff worker: the one thread that owns the device, what it is asked to do, and the collectives in which workers sum their
//! Grams.
//!
//! [`stored_model`] brings a model from an object store to this machine. [`preparation`] holds the order in which a worker prepares a job:
//! it opens the job's model and loads its weights. [`conditioning`] encodes its prompts into its store, and reads them from
//! there. [`pruning_job`] makes the engine of each worker, and exports the pruned model. [`device`] follows the coordinator's commands by
//! a [`device::Engine`], and reports how far it is. [`collective`] sums flat buffers, and knows nothing of what they hold.

pub mod collective;
pub mod conditioning;
pub mod device;
pub mod grams;
pub mod preparation;
pub mod pruning_job;
pub mod rendezvous;
pub mod session;
pub mod stored_model;
