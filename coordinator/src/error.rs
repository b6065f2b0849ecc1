//! What can go wrong with a coordinator.

use std::net::SocketAddr;

use obsdiff_security::SecurityError;
use obsdiff_store::StoreError;
use thiserror::Error;

/// What can go wrong with a coordinator, before it drives a job.
#[derive(Debug, Error)]
pub enum Error {
    /// The port cannot be bound or served.
    #[error("{address}: {problem}")]
    Port {
        /// Where it was to listen.
        address: SocketAddr,
        /// What the system said.
        problem: String,
    },
    /// Nothing protects the port.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// The job's store holds another job, is damaged, or does not do what it is asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The job cannot be written as JSON.
    #[error("the job cannot be recorded: {0}")]
    Record(#[source] serde_json::Error),
}

/// A result of the coordinator.
pub type Result<T, E = Error> = std::result::Result<T, E>;
