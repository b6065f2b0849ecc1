//! Errors of messages.

use std::fmt;

use thiserror::Error;

use crate::session::PROTOCOL;

/// A message that is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The other side speaks another protocol.
    #[error("this {} speaks protocol {PROTOCOL}, the {them} {theirs}: use the same release on both", them.other())]
    Protocol {
        /// Whose message it was.
        them: Side,
        /// Its version.
        theirs: u32,
    },
    /// A field has a value that is not allowed.
    #[error("{field}: {problem}")]
    Field {
        /// The field as a path, such as `status.sums.held`.
        field: String,
        /// What is wrong.
        problem: FieldProblem,
    },
}

/// One of the two ends of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The coordinator.
    Coordinator,
    /// A worker.
    Worker,
}

/// An error of a field.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum FieldProblem {
    /// Not there, or of a kind that this release does not know.
    #[error("is missing")]
    Missing,
    /// Too many entries.
    #[error("has {found} entries, but at most {most} are taken")]
    TooMany {
        /// Its entries.
        found: usize,
        /// The most that are taken.
        most: usize,
    },
    /// Too many bytes.
    #[error("has {found} bytes, but at most {most} are taken")]
    TooLong {
        /// Its bytes.
        found: usize,
        /// The most that are taken.
        most: usize,
    },
    /// A number that cannot be.
    #[error("is {found}, but must be {wanted}")]
    Range {
        /// The number.
        found: String,
        /// What it must be.
        wanted: String,
    },
    /// Entries that repeat or are out of order.
    #[error("is not ascending")]
    Unordered,
    /// A content that cannot be used.
    #[error("{0}")]
    Content(String),
}

impl WireError {
    /// An error of one field.
    pub(super) fn new(field: &str, problem: FieldProblem) -> Self {
        Self::Field { field: field.to_owned(), problem }
    }

    /// The same error for the message that holds this one in its field `outer`.
    pub(super) fn within(self, outer: &str) -> Self {
        match self {
            Self::Protocol { .. } => self,
            Self::Field { field, problem } => {
                let dot = if outer.is_empty() || field.is_empty() { "" } else { "." };
                Self::Field { field: format!("{outer}{dot}{field}"), problem }
            }
        }
    }
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Coordinator => Self::Worker,
            Self::Worker => Self::Coordinator,
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Coordinator => "coordinator",
            Self::Worker => "worker",
        })
    }
}

impl From<WireError> for tonic::Status {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Protocol { .. } => Self::failed_precondition(error.to_string()),
            WireError::Field { .. } => Self::invalid_argument(error.to_string()),
        }
    }
}
