//! An obsdiff worker: the one thread that owns the device, what it is asked to do, and the collectives in which workers sum their
//! Grams.
//!
//! [`preparation`] opens a job's model, encodes its prompts and loads its weights; [`work`] gives each worker its engine, and exports
//! what was pruned. [`collective`] knows flat buffers only. [`device`] follows the coordinator's commands by an [`device::Engine`], and
//! says how far it is.

pub mod collective;
pub mod device;
pub mod preparation;
pub mod rendezvous;
pub mod session;
pub mod work;
