//! What can go wrong in the `obsdiff` command.

use std::io;
use std::path::{Path, PathBuf};

use obsdiff_core::Failure;
use obsdiff_proto::causes;
use obsdiff_security::SecurityError;
use obsdiff_store::StoreError;
use obsdiff_worker::device::{PartStoreError, WorkError};
use obsdiff_worker::stored_model::StoredModelError;
use thiserror::Error;

use crate::advice::with_next_step;
use crate::signals::Signal;

/// The exit code for input that has to be changed first.
pub(crate) const BAD_INPUT: u8 = 2;
/// The exit code of a failure after which the same command may be run again.
pub const RESUMABLE: u8 = 3;
/// The exit code of a fault of obsdiff.
pub(crate) const FAULT: u8 = 4;

/// What is said where the system gives no thread.
pub(crate) const NO_THREADS: &str = "the system gives this process no more threads: raise its limit (ulimit -u, or pids.max of its \
     control group), or ask for fewer by --threads and --workers; what is finished is kept, and the same command may be run again";

/// A result of the command.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Errors of the command, with the values that show the user where they occurred.
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
    /// A key of a job, a flag or an environment variable has a value that cannot be used.
    #[error("{at}: {problem}")]
    Key {
        /// Where the value was given, such as `job.toml: sparsity.ratio` or `OBSDIFF_SPARSITY__RATIO`.
        at: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// The engine refused its input, or failed.
    #[error(transparent)]
    Engine(obsdiff_engine::Error),
    /// The job's store holds another job, is damaged, or fails.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A model in an object store cannot be brought here.
    #[error(transparent)]
    Model(Box<StoredModelError>),
    /// Certificates, addresses or tokens that cannot be used.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// The system refuses something that is no file of the user's.
    #[error("{0}")]
    System(#[source] io::Error),
    /// The other side of a connection does not do what it is asked.
    #[error("{0}")]
    Session(String),
    /// The other side does not serve this kind of process, so there is no use in trying again.
    #[error("{0}")]
    Refused(String),
    /// The job failed for a reason that may pass. The same command goes on from the last finished package.
    #[error("{0}")]
    Failed(Failure),
    /// Somebody cancelled the job.
    #[error("the job was cancelled: what is finished is kept, and the same command goes on from there")]
    Cancelled,
    /// A signal stopped the process.
    #[error("stopped by {signal}: {left}")]
    Stopped {
        /// The signal.
        signal: Signal,
        /// What is kept, and how to go on.
        left: String,
    },
    /// A worker that this process had started failed.
    #[error("{problem}")]
    Worker {
        /// Its exit code.
        code: u8,
        /// Which one, and how to go on.
        problem: String,
    },
    /// A worker found damaged objects in the job's store.
    #[error("{0}")]
    Damaged(String),
    /// A job that had begun was interrupted by a problem of its surroundings that may pass or that its user can solve.
    #[error("{source}; what is finished is kept in {state}, and the same command goes on from there")]
    Kept {
        /// Why.
        source: Box<Error>,
        /// Where its state is.
        state: String,
    },
    /// Standard output is closed or full.
    #[error("standard output: {0}")]
    Output(#[from] io::Error),
}

impl Error {
    pub(crate) fn file(path: impl AsRef<Path>, source: io::Error) -> Self {
        Self::File { path: path.as_ref().to_owned(), source }
    }

    pub(crate) fn content(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Self::Content { path: path.as_ref().to_owned(), problem: problem.into() }
    }

    pub(crate) fn key(at: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Key { at: at.into(), problem: problem.into() }
    }

    /// A thread that was not to be had.
    pub(crate) fn thread(error: &dyn std::error::Error) -> Self {
        Self::Session(format!("{NO_THREADS} ({})", causes(error)))
    }

    /// The process's exit code: 2 for input that has to be changed first, 3 for a failure after which the same command may be
    /// run again, 130 or 143 for a process that a signal stopped.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Failed(Failure::Fatal { .. }) => BAD_INPUT,
            Self::Engine(
                obsdiff_engine::Error::Tensor(_)
                | obsdiff_engine::Error::Write { .. }
                | obsdiff_engine::Error::Changed { .. },
            )
            | Self::Failed(_)
            | Self::Kept { .. }
            | Self::System(_)
            | Self::Session(_)
            | Self::Store(
                StoreError::Failed { .. }
                | StoreError::Denied { .. }
                | StoreError::Rejected { .. }
                | StoreError::NoCredentials { .. }
                | StoreError::Gone { .. }
                | StoreError::InUse { .. }
                | StoreError::Replaced { .. },
            )
            | Self::Cancelled
            | Self::Output(_) => RESUMABLE,
            Self::File { source, .. } | Self::Engine(obsdiff_engine::Error::File { source, .. })
                if is_shortage(source) =>
            {
                RESUMABLE
            }
            #[cfg(feature = "cuda")]
            Self::Engine(obsdiff_engine::Error::Cuda(obsdiff_engine::cuda::CudaError::Call { .. })) => {
                RESUMABLE
            }
            Self::Model(error) if matches!(&**error, StoredModelError::File { source, .. } if is_shortage(source)) => {
                RESUMABLE
            }
            Self::Stopped { signal, .. } => signal.exit_code(),
            Self::Worker { code, .. } => *code,
            _ => BAD_INPUT,
        }
    }

    /// The error of a job that had begun and whose state is kept in `state`. All its files could be read when the job was checked, so a
    /// file that fails later is a problem of the surroundings.
    pub(crate) fn after_begin(self, state: &str) -> Self {
        let failed_file = matches!(
            self,
            Self::File { .. }
                | Self::Engine(obsdiff_engine::Error::File { .. } | obsdiff_engine::Error::Write { .. })
        );
        // These errors say how to go on, or another process goes on.
        let is_explained = matches!(self, Self::Cancelled | Self::Failed(Failure::Superseded { .. }));
        if failed_file || (self.exit_code() == RESUMABLE && !is_explained) {
            Self::Kept { source: Box::new(self), state: state.to_owned() }
        } else {
            self
        }
    }

    /// Whether the reader of standard output has closed it, as `head` does. The user then needs no message.
    pub fn reader_left(&self) -> bool {
        matches!(self, Self::Output(e) if e.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The error and its causes in one line, and what to do next. A cause that is already part of an error's message is not repeated.
    pub fn line(&self) -> String {
        with_next_step(self)
    }
}

impl From<obsdiff_coordinator::Error> for Error {
    fn from(error: obsdiff_coordinator::Error) -> Self {
        use obsdiff_coordinator::Error as E;
        match error {
            E::Port { address, problem } => {
                let next = "choose an address of this machine and a port that is free";
                Self::key("--listen", format!("is {address}: {problem}; {next}"))
            }
            E::Security(error) => error.into(),
            E::Store(error) => error.into(),
            error @ (E::Record(_) | E::Metrics(_)) => Self::Session(error.to_string()),
        }
    }
}

/// Whether the machine lacks something (memory, disk space, open files, a working device), so that the file is not to blame.
fn is_shortage(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let lacks = [libc::ENOMEM, libc::EMFILE, libc::ENFILE, libc::EAGAIN, libc::EIO];
    let kinds = [
        Kind::OutOfMemory,
        Kind::StorageFull,
        Kind::QuotaExceeded,
        Kind::ReadOnlyFilesystem,
        Kind::TimedOut,
        Kind::ResourceBusy,
        Kind::StaleNetworkFileHandle,
    ];
    kinds.contains(&error.kind()) || error.raw_os_error().is_some_and(|e| lacks.contains(&e))
}

impl From<obsdiff_engine::Error> for Error {
    fn from(error: obsdiff_engine::Error) -> Self {
        // What the job's store is at fault for is reported as the store's.
        WorkError::from(error).into()
    }
}

impl From<StoredModelError> for Error {
    fn from(error: StoredModelError) -> Self {
        match error {
            StoredModelError::Store(error) => error.into(),
            StoredModelError::Engine(error) => error.into(),
            other => Self::Model(Box::new(other)),
        }
    }
}

impl From<WorkError> for Error {
    fn from(error: WorkError) -> Self {
        match error {
            WorkError::Engine(error) => Self::Engine(error),
            WorkError::PartStore(PartStoreError::Damaged(problem)) => Self::Damaged(problem),
            other => Self::Session(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_of_causes_becomes_one_line_without_repeats() {
        let inner = io::Error::other(Error::key("a.b", "is\n  bad"));
        let error = Error::file("x.toml", inner);
        assert_eq!(error.line(), "x.toml: a.b: is bad");
    }

    #[test]
    fn what_the_machine_lacks_may_pass() {
        let file = |error| Error::file("model.safetensors", io::Error::from_raw_os_error(error)).exit_code();
        assert_eq!([libc::ENOMEM, libc::EMFILE, libc::ENOENT, libc::EACCES].map(file), [3, 3, 2, 2]);
    }

    #[test]
    fn bad_input_exits_with_2_and_a_failure_with_3() {
        assert_eq!(Error::key("a", "b").exit_code(), 2);
        let failed = obsdiff_engine::Error::Tensor(candle_core_error());
        assert_eq!(Error::Engine(failed).exit_code(), 3);
        let file = |kind: io::ErrorKind| Error::file("a", kind.into());
        assert_eq!(file(io::ErrorKind::NotFound).exit_code(), 2);
        assert_eq!(file(io::ErrorKind::StorageFull).exit_code(), 3);
        assert_eq!(Error::file("a", io::Error::from_raw_os_error(5)).exit_code(), 3, "EIO");
    }

    #[test]
    fn a_file_that_fails_after_the_job_began_keeps_what_is_finished() {
        let gone = || Error::file("model", io::ErrorKind::NotFound.into());
        let kept = gone().after_begin("out.state");
        assert_eq!((gone().exit_code(), kept.exit_code()), (2, 3));
        assert!(kept.line().ends_with("kept in out.state, and the same command goes on from there"));
        assert_eq!(Error::key("a", "b").after_begin("out.state").exit_code(), 2);
        assert_eq!(Error::Damaged("a".to_owned()).after_begin("out.state").exit_code(), 2);
    }

    fn candle_core_error() -> candle_core::Error {
        candle_core::Error::Msg("out of memory".into())
    }
}
