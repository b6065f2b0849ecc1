//! What can go wrong in the engine.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// An engine result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the engine, with the values that tell its user where.
#[derive(Debug, Error)]
pub enum Error {
    /// A file could not be opened, read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file was read, but its content cannot be used.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A checkpoint lacks a tensor.
    #[error("{}: tensor `{name}` is missing", path.display())]
    MissingTensor {
        /// The checkpoint's directory or file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
    },
    /// A checkpoint's tensor does not have the shape its configuration asks for.
    #[error("{}: tensor `{name}` has shape {found:?}, but the configuration asks for {expected:?}", path.display())]
    Shape {
        /// The checkpoint's file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
        /// The shape the configuration asks for.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor holds a NaN or an infinity.
    #[error("{}: tensor `{name}` holds a value that is not finite", path.display())]
    NotFinite {
        /// The checkpoint's file.
        path: PathBuf,
        /// The tensor's name.
        name: String,
    },
    /// An argument that a call cannot work with.
    #[error("{0}")]
    Argument(String),
    /// A tensor operation failed.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn file(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::File { path: path.as_ref().to_owned(), source }
    }

    pub(crate) fn content(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Content { path: path.as_ref().to_owned(), problem: problem.into() }
    }
}
