//! A job's store as its coordinator has it: it begins or resumes the job, commits its packages, and keeps what its successor needs.
//! Workers only put parts, and read what is committed.

mod begin;
mod lives;
mod packages;
mod successor;

use std::ops::Deref;

use obsdiff_store::{JobStore, Result, Retries};

pub use begin::{ChangedKey, Opened, changed_keys};

/// The store of a job, for the coordinator that runs it. Clones are the same store.
#[derive(Clone, Debug)]
pub struct CoordinatorStore(JobStore);

impl CoordinatorStore {
    /// The store of a new or an earlier job, as [`JobStore::create`] takes it over.
    ///
    /// # Errors
    /// As there.
    pub fn create(url: &str, options: &[(String, String)]) -> Result<Self> {
        JobStore::create(url, options).map(Self)
    }

    /// The same store for a process that starts, as [`JobStore::at_start`].
    #[must_use]
    pub fn at_start(&self) -> Self {
        Self(self.0.at_start())
    }

    /// The same store with other patience.
    pub fn with_retries(self, retries: Retries) -> Self {
        Self(self.0.with_retries(retries))
    }
}

impl From<JobStore> for CoordinatorStore {
    fn from(store: JobStore) -> Self {
        Self(store)
    }
}

impl Deref for CoordinatorStore {
    type Target = JobStore;

    fn deref(&self) -> &JobStore {
        &self.0
    }
}
