//! An obsdiff worker: the one thread that owns the device, what it is asked to do, and the collectives in which workers sum their
//! Grams.
//!
//! [`preparation`] opens a job's model and loads its weights; [`conditioning`] encodes its prompts into its store, and reads them there; [`work`] gives each worker its engine, and exports
//! what was pruned. [`collective`] knows flat buffers only. [`device`] follows the coordinator's commands by an [`device::Engine`], and
//! says how far it is.

pub mod collective;
pub mod conditioning;
pub mod device;
pub mod grams;
pub mod preparation;
pub mod rendezvous;
pub mod session;
pub mod work;
