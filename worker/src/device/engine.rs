//! The calls by which a device works, one at a time.

use std::collections::BTreeSet;

use obsdiff_engine::Error;
use obsdiff_proto::message::{Exponents, Fault, Opening, Part, Receipt, SavedSums, Solved};
use obsdiff_proto::{ShardId, SiteId, WorkerId};
use obsdiff_store::{SavedGram, SumsRecord};

use crate::collective::{Collective, CollectiveError};
use crate::device::PartStoreError;

/// Called after every step of a long piece of work, in forward calls after every block. Its error stops the work and is passed on.
pub type AfterStep<'a> = &'a mut dyn FnMut() -> Result<(), WorkError>;

/// A model being pruned on a device. Calls are synchronous and come from one thread.
pub trait Engine {
    /// Runs a shard on the dense model and finds the exponents of all sites.
    ///
    /// # Errors
    /// When the model fails.
    fn pilot(&mut self, shard: ShardId, step: AfterStep<'_>) -> Result<Exponents, WorkError>;

    /// Starts sums from zero, and drops the earlier ones.
    ///
    /// # Errors
    /// When the package is not of the plan, or an exponent is missing.
    fn open(&mut self, opening: &Opening) -> Result<(), WorkError>;

    /// Reads what [`Engine::calibrate`] needs of a shard and this machine has not. The sums stay as they are.
    ///
    /// # Errors
    /// When the store fails.
    fn read(&mut self, shard: ShardId) -> Result<(), WorkError>;

    /// Adds a shard to the sums. After an error they hold only a part of it.
    ///
    /// # Errors
    /// [`WorkError::Overflow`] when a sum leaves its range; when the model fails, or `step` does.
    fn calibrate(&mut self, shard: ShardId, step: AfterStep<'_>) -> Result<(), WorkError>;

    /// Puts the sums into the store. They consist of `shards`, and no other save has the name `save`. None where they cannot be added to
    /// others: sums of floats, Grams that are read in place of calibration, or none at all.
    ///
    /// # Errors
    /// When the store fails, or `step` does. What was put is then removed again, as far as possible.
    fn save(
        &mut self,
        save: &str,
        shards: &BTreeSet<ShardId>,
        step: AfterStep<'_>,
    ) -> Result<Option<Receipt>, WorkError>;

    /// Reads the record of saved sums, and checks that they can be added to the open ones, which stay as they are.
    ///
    /// # Errors
    /// [`PartStoreError::Damaged`] when they are missing or damaged, or of another package, other exponents or other shards; when the
    /// store fails.
    fn check_saved(&mut self, saved: &SavedSums) -> Result<SumsRecord, WorkError>;

    /// Adds one Gram of saved sums that were checked. The sums hold all of them once this has been called for each. After
    /// [`WorkError::PartStore`] nothing of this one was added.
    ///
    /// # Errors
    /// [`WorkError::Overflow`] when a sum leaves its range; when the Gram is missing or damaged, or the store fails.
    fn restore(&mut self, gram: &SavedGram) -> Result<(), WorkError>;

    /// Removes saved sums that later ones contain. Where that fails, they stay until their package is committed.
    fn forget(&mut self, saved: &Receipt);

    /// Makes the reducer that sums the open package's Grams over the ranks of a group. `adds` says whether this rank's own sums count.
    /// While the reducer works, the only call to the engine is [`Engine::solve`].
    fn reducer(&mut self, adds: bool) -> Box<dyn Reducer>;

    /// Drops the Grams received and not solved yet.
    fn release(&mut self);

    /// Solves a part by its received Gram, or without one where the method needs none, and puts the weights in the store. Neither
    /// the model nor the Gram changes.
    ///
    /// # Errors
    /// When the Gram cannot be factorised, a weight is not finite, the store fails, or `step` does.
    fn solve(&mut self, part: &Part, step: AfterStep<'_>) -> Result<Solved, WorkError>;

    /// Whether [`Engine::apply`] of so many packages would keep the sums, because they are also those of the next package
    /// ([`Plan::keeps_sums`](obsdiff_proto::Plan::keeps_sums)).
    fn keeps_sums(&self, packages: u32) -> bool;

    /// Loads committed weights until so many packages are applied. Drops Grams that were received, and sums that are not kept.
    ///
    /// # Errors
    /// When the store fails. Packages that were applied before the error stay applied; the next call may apply the rest.
    fn apply(&mut self, packages: u32, step: AfterStep<'_>) -> Result<(), WorkError>;

    /// Writes the pruned pipeline.
    ///
    /// # Errors
    /// When it cannot be written.
    fn export(&mut self, step: AfterStep<'_>) -> Result<(), WorkError>;
}

/// Sums Grams over the ranks of a group, on a thread beside the engine's.
pub trait Reducer: Send {
    /// Sums a site's Gram. The ranks of `roots` receive the sum beside their own sums, and their engines find it there. Returns whether
    /// this rank received it.
    ///
    /// # Errors
    /// [`WorkError::Overflow`] at every rank when the sum leaves its range; [`WorkError::Group`].
    fn reduce(
        &mut self,
        site: SiteId,
        roots: &[usize],
        group: &mut dyn Collective,
    ) -> Result<bool, WorkError>;
}

/// Why a piece of work failed.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// A Gram's diagonal left the range of its integers.
    #[error("the Gram of site {site} overflowed exponent {exponent}")]
    Overflow {
        /// The Gram's site.
        site: SiteId,
        /// The exponent it was gathered with.
        exponent: i32,
    },
    /// It was asked to stop, because its result is obsolete.
    #[error("stopped")]
    Stopped,
    /// The group failed.
    #[error(transparent)]
    Group(#[from] CollectiveError),
    /// The store failed.
    #[error(transparent)]
    PartStore(#[from] PartStoreError),
    /// The engine failed.
    #[error(transparent)]
    Engine(Error),
}

impl From<Error> for WorkError {
    fn from(error: Error) -> Self {
        match error {
            Error::Conditioning(source) => match source.downcast::<PartStoreError>() {
                Ok(of_store) => Self::PartStore(*of_store),
                Err(source) => Self::Engine(Error::Conditioning(source)),
            },
            error => Self::Engine(error),
        }
    }
}

impl WorkError {
    /// The error in words, with workers for ranks of a group.
    pub(super) fn among(&self, members: &[WorkerId]) -> String {
        match self {
            Self::Group(error) => error.among(members),
            _ => self.to_string(),
        }
    }

    /// Whether the cause lies where the worker runs: it was not stopped, and no peer failed.
    pub(super) const fn is_of_host(&self) -> bool {
        !matches!(self, Self::Stopped | Self::Group(_))
    }

    /// The fault that is reported to the coordinator.
    pub(super) fn fault(&self) -> Fault {
        match self {
            Self::Overflow { site, exponent } => Fault::Overflow { site: *site, exponent: *exponent },
            Self::Stopped | Self::Group(_) | Self::PartStore(PartStoreError::Failed(_)) => {
                Fault::Transient(self.to_string())
            }
            Self::Engine(Error::File { source, .. } | Error::Write { source, .. }) => {
                if may_pass(source.kind()) {
                    Fault::Transient(self.to_string())
                } else {
                    Fault::Environment(self.to_string())
                }
            }
            Self::Engine(Error::Tensor(_) | Error::Changed { .. }) => Fault::Environment(self.to_string()),
            Self::PartStore(_) | Self::Engine(_) => Fault::Fatal(self.to_string()),
        }
    }
}

/// Runs a call of the engine, whose steps can only return the engine's kind of error, and passes on the error of a step.
pub(super) fn stoppable<T>(
    step: AfterStep<'_>,
    run: impl FnOnce(&mut dyn FnMut() -> Result<(), Error>) -> Result<T, Error>,
) -> Result<T, WorkError> {
    let mut stopped = None;
    let result = run(&mut || {
        step().map_err(|error| {
            stopped = Some(error);
            Error::Interrupted
        })
    });
    result.map_err(|error| stopped.unwrap_or_else(|| error.into()))
}

/// Whether an error of a file may pass by itself: of a disk or network that is slow or away, or of a disk or quota that others may free.
/// Every other error stays until somebody removes its cause.
fn may_pass(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind as Kind;
    !matches!(
        kind,
        Kind::NotFound
            | Kind::PermissionDenied
            | Kind::AlreadyExists
            | Kind::NotADirectory
            | Kind::IsADirectory
            | Kind::InvalidInput
            | Kind::ReadOnlyFilesystem
            | Kind::FileTooLarge
            | Kind::InvalidFilename
    )
}
