//! Conditionings as the engine reads them from the job's store.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use obsdiff_engine::calibrate::{Conditionings, Encoded};
use obsdiff_engine::pipeline::Conditioning;
use obsdiff_engine::{Error, Result};
use obsdiff_proto::{Digest, JobSpec};
use obsdiff_store::{JobStore, StoreError};
use tokio::runtime::Handle;

use super::ConditioningObjects;
use super::object::{self, Expected};
use crate::device::PartStoreError;
use crate::preparation::JobModel;

/// The conditionings of a job's prompts, read from its store. If they take at most [`Encoded::IN_MEMORY`] bytes, all are read at once and
/// kept in memory; otherwise each batch is read when it is asked for. Calls wait on a runtime, so they must not come from one of its
/// own threads.
pub struct StoredConditionings {
    /// The store, with the patience of a process that starts.
    store: JobStore,
    runtime: Handle,
    pub(super) objects: ConditioningObjects,
    /// What the conditioning of one prompt must be like.
    expected: Expected,
    negative: Conditioning,
    /// All conditionings, where they are kept in memory.
    pub(super) kept: Option<BTreeMap<u32, Conditioning>>,
}

impl StoredConditionings {
    /// Opens the conditionings of a job, all of which are in its store.
    ///
    /// # Errors
    /// When one that is read is missing or damaged, or the store fails.
    pub fn open(
        spec: &JobSpec,
        model: &JobModel,
        objects: ConditioningObjects,
        store: &JobStore,
        runtime: Handle,
    ) -> Result<Self, StoreError> {
        let (store, expected) = (store.at_start(), Expected::of(spec, model, 1));
        let negative = read(&store, &runtime, objects.negative, expected)?;
        let negative = negative.into_iter().next();
        let negative = negative.ok_or_else(|| store.damaged_conditioning(objects.negative, "it is empty"))?;
        let [tokens, width, pooled] = expected.sizes.map(|size| size as u64);
        let bytes = Encoded::bytes(
            u64::from(objects.prompts()),
            [tokens, width, pooled],
            expected.dtype.size_in_bytes() as u64,
        );
        let mut opened = Self { store, runtime, objects, expected, negative, kept: None };
        if bytes <= Encoded::IN_MEMORY as u64 {
            let ids: Vec<u32> = opened.objects.shards.iter().flat_map(|(ids, _)| ids.clone()).collect();
            let all = opened.batch(0..opened.objects.prompts())?;
            opened.kept = Some(ids.into_iter().zip(all).collect());
        }
        Ok(opened)
    }

    /// Reads the conditionings of some prompts.
    fn batch(&self, prompts: Range<u32>) -> Result<Vec<Conditioning>, StoreError> {
        let mut batch = Vec::with_capacity(prompts.len());
        for (ids, key) in &self.objects.shards {
            let wanted = prompts.start.max(ids.start)..prompts.end.min(ids.end);
            if !wanted.is_empty() {
                let expected = Expected { prompts: ids.len(), ..self.expected };
                let object = read(&self.store, &self.runtime, *key, expected)?;
                let skipped = (wanted.start - ids.start) as usize;
                batch.extend(object.into_iter().skip(skipped).take(wanted.len()));
            }
        }
        Ok(batch)
    }
}

/// Reads an object.
fn read(
    store: &JobStore,
    runtime: &Handle,
    key: Digest,
    expected: Expected,
) -> Result<Vec<Conditioning>, StoreError> {
    let object = runtime.block_on(store.conditioning(key))?;
    object::read(key, &object, expected).map_err(|problem| store.damaged_conditioning(key, &problem))
}

impl Conditionings for StoredConditionings {
    fn prompts(&self) -> u32 {
        self.objects.prompts()
    }

    fn negative(&self) -> &Conditioning {
        &self.negative
    }

    fn read(&self, prompts: Range<u32>) -> Result<Vec<Conditioning>> {
        if prompts.start > prompts.end || prompts.end > self.prompts() {
            return Err(Error::Argument(format!("prompts {prompts:?} are not among {}", self.prompts())));
        }
        if let Some(kept) = &self.kept {
            let found: Option<Vec<_>> = prompts.clone().map(|id| kept.get(&id).cloned()).collect();
            return found.ok_or_else(|| unencoded(prompts));
        }
        if !prompts.clone().all(|id| self.objects.shards.iter().any(|(ids, _)| ids.contains(&id))) {
            return Err(unencoded(prompts));
        }
        self.batch(prompts).map_err(|error| Error::Conditioning(Box::new(PartStoreError::from(error))))
    }
}

fn unencoded(prompts: Range<u32>) -> Error {
    Error::Argument(format!("prompts {prompts:?} were not encoded: the job has no use for them"))
}

impl fmt::Debug for StoredConditionings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredConditionings").field("prompts", &self.prompts()).finish_non_exhaustive()
    }
}
