//! Why a job cannot be prepared.

use std::path::PathBuf;

use obsdiff_proto::JobError;
use obsdiff_store::StoreError;
use thiserror::Error;

/// Why a job cannot be prepared.
#[derive(Debug, Error)]
pub enum PreparationError {
    /// A key of the job has a value that cannot be used.
    #[error(transparent)]
    Job(#[from] JobError),
    /// A value of the job does not fit its model; the text names its key.
    #[error("{0}")]
    Argument(String),
    /// A file or folder is not what it should be.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// A component of the model cannot be used.
    #[error(transparent)]
    Engine(#[from] obsdiff_engine::Error),
    /// The job's store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A result of preparation.
pub type Result<T, E = PreparationError> = std::result::Result<T, E>;

impl PreparationError {
    /// The engine names the key that an argument came from: it is one of the job's.
    pub(super) fn of_job(error: obsdiff_engine::Error) -> Self {
        match error {
            obsdiff_engine::Error::Argument(problem) => Self::Argument(problem),
            other => other.into(),
        }
    }

    /// The error of the store that a job's output is in, by its key where that has to change.
    pub fn of_output(error: StoreError) -> Self {
        let refused = |problem: String| JobError::new("output.path", problem).into();
        match error {
            StoreError::Url { url, problem } => refused(format!("is {url}, which {problem}")),
            StoreError::Bucket { store } => refused(format!(
                "is {store}, but there is no such bucket or container: make it, or name another"
            )),
            other => other.into(),
        }
    }
}
