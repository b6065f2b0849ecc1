//! Errors of a coordinator.

use std::net::SocketAddr;

use obsdiff_security::SecurityError;
use obsdiff_store::StoreError;
use thiserror::Error;

/// Errors of a coordinator before it drives a job.
#[derive(Debug, Error)]
pub enum Error {
    /// The port cannot be bound or served.
    #[error("{address}: {problem}")]
    Port {
        /// The address to listen on.
        address: SocketAddr,
        /// The system's error.
        problem: String,
    },
    /// Nothing protects the port.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// The job's store holds another job, is damaged, or fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The job cannot be written as JSON.
    #[error("the job cannot be recorded: {0}")]
    Record(#[source] serde_json::Error),
    /// The metrics cannot be made or written.
    #[error("the metrics cannot be shown: {0}")]
    Metrics(String),
}

/// A result of the coordinator.
pub type Result<T, E = Error> = std::result::Result<T, E>;
