//! Errors of certificates, addresses and tokens.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use thiserror::Error;

/// An error in what a user gave for security.
#[derive(Debug, Error)]
pub enum SecurityError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// An address that others reach, without TLS.
    #[error(
        "{address} is reached from other machines: give --tls-cert, --tls-key and --tls-ca, bind a loopback address such as 127.0.0.1, or insist with --insecure"
    )]
    OpenPort {
        /// The address to bind.
        address: SocketAddr,
    },
    /// A host elsewhere, without TLS.
    #[error(
        "{url} is another machine: give --tls-cert, --tls-key and --tls-ca and write https://, or insist with --insecure"
    )]
    OpenDial {
        /// The URL to dial.
        url: String,
    },
    /// A URL that does not fit the rest.
    #[error("{url}: {problem}")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A token that protects nothing.
    #[error("{origin}: {problem}")]
    Token {
        /// Where the token was given.
        origin: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

/// A result about security.
pub type Result<T, E = SecurityError> = std::result::Result<T, E>;

impl SecurityError {
    pub(super) fn content(path: impl Into<PathBuf>, problem: impl Into<String>) -> Self {
        Self::Content { path: path.into(), problem: problem.into() }
    }
}
