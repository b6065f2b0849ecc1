//! An obsdiff worker: the one thread that owns the device, what it is asked to do, and the collectives in which workers sum their
//! Grams; and what it shares with the coordinator around gRPC: the store of results, and security.
//!
//! [`collective`] knows flat buffers only. [`device`] follows the coordinator's commands by an [`device::Engine`], and says how far
//! it is.

mod causes;
pub mod collective;
pub mod device;
mod lock;
pub mod meeting;
pub mod security;
pub mod session;
pub mod store;
