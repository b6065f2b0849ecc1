//! Why a model in an object store cannot be used.

use std::io;
use std::path::PathBuf;

use obsdiff_proto::ByteSize;
use obsdiff_store::StoreError;
use thiserror::Error;

/// Why a model in an object store cannot be used.
#[derive(Debug, Error)]
pub enum StoredModelError {
    /// The store fails, or holds what is no model.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The pipeline is of no kind that can be used.
    #[error(transparent)]
    Engine(#[from] obsdiff_engine::Error),
    /// What the prefix holds has to be changed first.
    #[error("{url} {problem}")]
    Refused {
        /// The model's URL.
        url: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// There is no folder to keep the model in.
    #[error(
        "{url} needs a folder of this machine to be kept in: name one by --cache or OBSDIFF_CACHE, since HOME is not set"
    )]
    NoCache {
        /// The model's URL.
        url: String,
    },
    /// The folder for models holds something else.
    #[error(
        "the cache {} holds {entry}, but no {marker} that marks it as obsdiff's: name an empty or a new folder by --cache or OBSDIFF_CACHE", path.display()
    )]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// What it holds.
        entry: String,
        /// The file that it lacks.
        marker: &'static str,
    },
    /// The model does not fit the disk.
    #[error(
        "{url} takes {needed} more in the cache {}, which has {free} free: make room there, or name another folder by --cache or OBSDIFF_CACHE", path.display()
    )]
    Space {
        /// The model's URL.
        url: String,
        /// The folder.
        path: PathBuf,
        /// What is still to come.
        needed: ByteSize,
        /// What the disk has.
        free: ByteSize,
    },
    /// A file or folder of the cache cannot be made or read.
    #[error("{}: {source}; the cache can be another folder by --cache or OBSDIFF_CACHE", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// A result with a model in an object store.
pub type Result<T, E = StoredModelError> = std::result::Result<T, E>;

impl StoredModelError {
    pub(super) fn file(path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File { path: path.into(), source }
    }
}
