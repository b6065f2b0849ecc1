//! Grams that outlive a job, opened for it.

use std::sync::Arc;

use obsdiff_proto::JobSpec;
use obsdiff_store::{GramStore, StoreError};
use tokio::runtime::Handle;

use super::{GramIndex, GramKeeper, GramOrigin, KeptGrams};

/// The Grams that a job keeps, and those that it reads in place of calibration.
pub struct JobGrams {
    /// Keeps Grams for later jobs, where the job asks for that.
    pub keeper: Option<GramKeeper>,
    /// The kept Grams that are read, where the job names any.
    pub kept: Option<KeptGrams>,
}

impl JobGrams {
    /// Opens the places of a job's Grams. Those that it keeps come from `origin`; `index` is that of those that it reads; `settings` are as
    /// [`GramStore::open`] takes them.
    ///
    /// # Errors
    /// When a place cannot be opened.
    pub fn open(
        origin: GramOrigin,
        index: Option<&Arc<GramIndex>>,
        settings: &[(String, String)],
        runtime: &Handle,
    ) -> Result<Self, StoreError> {
        let read = origin.spec.calibration.grams.as_ref().zip(index).map(|(url, index)| {
            let store = GramStore::open(url, settings)?;
            Ok::<_, StoreError>(KeptGrams::new(store, runtime.clone(), index.clone(), &origin.spec))
        });
        let kept = read.transpose()?;
        let place = origin.spec.output.grams.as_ref().map(|url| GramStore::open(url, settings));
        let keeper = place.transpose()?.map(|store| GramKeeper::new(store, runtime.clone(), origin));
        Ok(Self { keeper, kept })
    }

    /// What the kept Grams are of that a job reads.
    ///
    /// # Errors
    /// When their place cannot be opened or read.
    pub fn index(
        spec: &JobSpec,
        settings: &[(String, String)],
        runtime: &Handle,
    ) -> Result<Option<Arc<GramIndex>>, StoreError> {
        let Some(url) = &spec.calibration.grams else { return Ok(None) };
        let store = GramStore::open(url, settings)?;
        Ok(Some(Arc::new(runtime.block_on(store.index())?)))
    }
}
