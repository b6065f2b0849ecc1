//! What can go wrong in the engine.

use std::io;
use std::path::{Path, PathBuf};

use obsdiff_proto::SiteId;
use thiserror::Error;

/// An engine result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in the engine, with the values that say where.
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
    /// A file of the output could not be written: its user has to make room, or to allow it.
    #[error("{}: {source}{}", path.display(), remedy(source.kind()))]
    Write {
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
    /// A file was written to, or another one was put in its place, since the pipeline was opened.
    #[error(
        "{}: was changed while it was in use, so the result would be of neither version: put the earlier one back and run the same \
         command again, or begin anew with this one",
        path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
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
    /// An observation or a sum passed the range of a site's integers: gather the package again at a lower exponent.
    #[error("the Gram of {name} overflowed its exponent")]
    Overflow {
        /// The site.
        site: SiteId,
        /// Its name.
        name: String,
    },
    /// A site whose observations or Gram cannot be worked with.
    #[error("site {name}: {problem}")]
    Site {
        /// The site's name.
        name: String,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The caller asked a long-running call to stop.
    #[error("interrupted")]
    Interrupted,
    /// An argument that a call cannot work with.
    #[error("{0}")]
    Argument(String),
    /// The conditioning of prompts could not be read from where it is kept.
    #[error(transparent)]
    Conditioning(Box<dyn std::error::Error + Send + Sync>),
    /// A GPU could not do its work.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] crate::cuda::CudaError),
    /// A tensor operation failed.
    #[error("tensor operation: {0}")]
    Tensor(#[from] candle_core::Error),
}

impl Error {
    pub(crate) fn file(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::File { path: path.as_ref().to_owned(), source }
    }

    pub(crate) fn write(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::Write { path: path.as_ref().to_owned(), source }
    }

    pub(crate) fn content(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Content { path: path.as_ref().to_owned(), problem: problem.into() }
    }
}

/// What lets a file be written that could not be.
fn remedy(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::StorageFull => ": make room there",
        io::ErrorKind::QuotaExceeded => ": make room there, or raise the quota",
        io::ErrorKind::PermissionDenied => ": allow this user to write there",
        io::ErrorKind::ReadOnlyFilesystem => ": mount it so that it can be written to",
        io::ErrorKind::FileTooLarge => ": raise the limit on the size of files (ulimit -f)",
        _ => "",
    }
}
