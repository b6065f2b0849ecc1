//! Why a job cannot be planned on a model.

use obsdiff_proto::{ByteSize, JobError};
use thiserror::Error;

/// Why no plan can be made: what is wrong with the value of [`PlanError::key`].
#[derive(Clone, Debug, PartialEq, Error)]
pub enum PlanError {
    /// A value of the job file that cannot be used.
    #[error(transparent)]
    Job(#[from] JobError),
    /// A rule that matches nothing is a mistyped one.
    #[error("\"{glob}\" matches no linear that can be pruned, whose names are like `{example}`")]
    IdleRule {
        /// Index of the rule.
        rule: usize,
        /// Its glob.
        glob: String,
        /// The name of one of the model's linears.
        example: String,
    },
    /// A rule of a structured job that matches only linears which lose what others lose.
    #[error(
        "\"{glob}\" decides nothing: it matches {count} linears such as `{met}`, but heads and neurons go by the first linear that reads them: match that, such as `{example}`"
    )]
    FollowingRule {
        /// Index of the rule.
        rule: usize,
        /// Its glob.
        glob: String,
        /// Linears that it matches.
        count: usize,
        /// The first of them.
        met: String,
        /// The name of a linear that decides.
        example: String,
    },
    /// A rule behind others that decide for all that it matches.
    #[error(
        "\"{glob}\" decides nothing: it matches {count} linears such as `{met}`, and {before} before it decides for each: move it up, or leave it out"
    )]
    ShadowedRule {
        /// Index of the rule.
        rule: usize,
        /// Its glob.
        glob: String,
        /// Linears that it matches.
        count: usize,
        /// The first of them.
        met: String,
        /// The rules that decide for them.
        before: String,
    },
    /// Every linear is skipped.
    #[error("every linear of the model is skipped, so there is nothing to prune")]
    NothingToPrune,
    /// Structured pruning of a model of which only the first and the last block are there.
    #[error(
        "\"structured\" keeps the first and the last block, and nothing else is left to prune: name a block by a rule with ratio or pattern = \"structured\""
    )]
    OnlyEnds,
    /// A package holds a unit at least.
    #[error(
        "is {count}, but {most} units of the model are pruned and a package takes one at least: give {most} or fewer"
    )]
    TooManyPackages {
        /// What the job asks for.
        count: u32,
        /// Units with something to prune.
        most: u32,
    },
    /// One unit's Grams alone take more memory than packages may have.
    #[error(
        "is {limit}, but the Grams of `{site}` and its unit alone take {needed}: give at least \"{least}\""
    )]
    UnitTooLarge {
        /// What the job allows.
        limit: ByteSize,
        /// The first site of the unit.
        site: String,
        /// What the unit takes.
        needed: ByteSize,
        /// The smallest memory that works, as a job file writes it.
        least: String,
    },
}

impl PlanError {
    /// The key of the job whose value cannot be used.
    pub fn key(&self) -> String {
        match self {
            Self::Job(error) => error.key.clone(),
            Self::IdleRule { rule, .. }
            | Self::FollowingRule { rule, .. }
            | Self::ShadowedRule { rule, .. } => format!("sparsity.rules[{rule}].match"),
            Self::NothingToPrune => "sparsity.rules".to_owned(),
            Self::OnlyEnds => "sparsity.pattern".to_owned(),
            Self::TooManyPackages { .. } => "packages.count".to_owned(),
            Self::UnitTooLarge { .. } => "packages.memory".to_owned(),
        }
    }
}

impl From<PlanError> for JobError {
    fn from(error: PlanError) -> Self {
        match error {
            PlanError::Job(error) => error,
            other => Self::new(other.key(), other.to_string()),
        }
    }
}
