//! Which weights go: `unstructured`, `N:M` or `structured`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The largest M: no linear of any transformer is as wide, and counts of pruned columns stay far from overflowing.
const MOST_COLUMNS: usize = 1 << 20;

/// A sparsity pattern as a job names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pattern {
    /// Any weight of a block of columns may go.
    Unstructured,
    /// `n` of every `m` consecutive columns of a row go.
    NToM {
        /// Weights pruned in each group.
        n: usize,
        /// Columns in a group.
        m: usize,
    },
    /// Whole attention heads and FFN neurons go.
    Structured,
}

/// Why a pattern was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PatternError {
    /// Neither a known word nor N:M.
    #[error("pattern \"{0}\" is not \"unstructured\", \"structured\" or \"N:M\" such as \"2:4\"")]
    Unknown(String),
    /// N:M that leaves nothing, or that has empty groups.
    #[error("pattern \"{n}:{m}\" prunes {n} of every {m} columns: N must be smaller than M")]
    NotBelow {
        /// Weights pruned in each group.
        n: usize,
        /// Columns in a group.
        m: usize,
    },
    /// N:M with groups wider than any linear.
    #[error("pattern \"{n}:{m}\" has groups of {m} columns: M is at most {MOST_COLUMNS}")]
    TooWide {
        /// Weights pruned in each group.
        n: usize,
        /// Columns in a group.
        m: usize,
    },
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(s: &str) -> Result<Self, PatternError> {
        match s {
            "unstructured" => return Ok(Self::Unstructured),
            "structured" => return Ok(Self::Structured),
            _ => {}
        }
        let numbers = s.split_once(':').and_then(|(n, m)| Some((n.parse().ok()?, m.parse().ok()?)));
        match numbers {
            Some((n, m)) if n >= m => Err(PatternError::NotBelow { n, m }),
            Some((n, m)) if m > MOST_COLUMNS => Err(PatternError::TooWide { n, m }),
            Some((n, m)) => Ok(Self::NToM { n, m }),
            None => Err(PatternError::Unknown(s.to_owned())),
        }
    }
}

impl TryFrom<String> for Pattern {
    type Error = PatternError;

    fn try_from(s: String) -> Result<Self, PatternError> {
        s.parse()
    }
}

impl From<Pattern> for String {
    fn from(p: Pattern) -> Self {
        p.to_string()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unstructured => f.write_str("unstructured"),
            Self::NToM { n, m } => write!(f, "{n}:{m}"),
            Self::Structured => f.write_str("structured"),
        }
    }
}

/// The target of one linear: a pattern with its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// `floor(ratio * weights)` of every block of columns go, over all rows.
    Unstructured {
        /// Share pruned, 0..=1.
        ratio: f64,
    },
    /// `n` of every `m` consecutive columns of each row go.
    NToM {
        /// Weights pruned in each group.
        n: usize,
        /// Columns in a group.
        m: usize,
    },
    /// Whole heads or neurons go, with their columns here and their rows in the linears before.
    Structured {
        /// Share of the heads or neurons that goes, 0..=1; absent where a budget over the whole model decides.
        ratio: Option<f64>,
    },
}
