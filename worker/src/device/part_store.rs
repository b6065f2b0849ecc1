//! Where pruned weights are stored between the worker that solves them and those that apply them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::try_join_all;
use obsdiff_proto::message::{PartId, Receipt};
use obsdiff_proto::{PackageId, lock};
use obsdiff_store::{JobStore, PartReceipt, StoreError, SumsRecord};
use thiserror::Error;
use tokio::runtime::Handle;

use super::SumsStore;

/// Stores the weights of parts as objects, with the manifests that make them count, and saved sums. Calls block.
pub trait PartStore: SumsStore {
    /// Puts a part's object, and returns the receipt for its package's manifest.
    ///
    /// # Errors
    /// When it cannot be written.
    fn put(&self, part: PartId, object: Vec<u8>) -> Result<Receipt, PartStoreError>;

    /// The parts of a committed package.
    ///
    /// # Errors
    /// When the manifest is missing, damaged or cannot be read.
    fn manifest(&self, package: PackageId) -> Result<BTreeMap<PartId, Receipt>, PartStoreError>;

    /// A part's object, as it was put.
    ///
    /// # Errors
    /// When it is missing, damaged or cannot be read.
    fn get(&self, receipt: &Receipt) -> Result<Bytes, PartStoreError>;

    /// The objects of some parts, in their order. A store on other machines is asked for all of them at the same time.
    ///
    /// # Errors
    /// As [`Self::get`], of the first that fails.
    fn get_each(&self, receipts: &[&Receipt]) -> Result<Vec<Bytes>, PartStoreError> {
        receipts.iter().map(|receipt| self.get(receipt)).collect()
    }
}

/// Objects that are asked for at the same time. Each is held in memory, while no Gram is.
const READ_AT_ONCE: usize = 4;

/// The objects of all parts of a manifest with their receipts, in order, a few of them read ahead.
pub(super) fn objects<'a>(
    part_store: &'a dyn PartStore,
    manifest: &'a BTreeMap<PartId, Receipt>,
) -> impl Iterator<Item = Result<(&'a Receipt, Bytes), PartStoreError>> {
    let receipts: Vec<&Receipt> = manifest.values().collect();
    let chunks = receipts.chunks(READ_AT_ONCE).map(<[_]>::to_vec).collect::<Vec<_>>();
    chunks.into_iter().flat_map(|receipts| match part_store.get_each(&receipts) {
        Ok(objects) => receipts.into_iter().zip(objects).map(Ok).collect(),
        Err(error) => vec![Err(error)],
    })
}

/// Why an object could not be put or read.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PartStoreError {
    /// It may succeed another time.
    #[error("{0}")]
    Failed(String),
    /// What is stored cannot be used; reading it again does not help.
    #[error("{0}")]
    Damaged(String),
}

impl From<StoreError> for PartStoreError {
    fn from(error: StoreError) -> Self {
        match error {
            // A request that is refused counts as well: the cause may be removed while the job waits.
            StoreError::Failed { .. }
            | StoreError::Denied { .. }
            | StoreError::Rejected { .. }
            | StoreError::NoCredentials { .. }
            | StoreError::Gone { .. } => Self::Failed(error.to_string()),
            _ => Self::Damaged(error.to_string()),
        }
    }
}

/// A job's store. Its calls wait on a runtime, so they must not come from one of its own threads.
#[derive(Clone)]
pub struct JobPartStore {
    pub(super) store: JobStore,
    pub(super) runtime: Handle,
}

impl JobPartStore {
    /// The parts of a job's store.
    pub fn new(store: JobStore, runtime: Handle) -> Self {
        Self { store, runtime }
    }
}

impl PartStore for JobPartStore {
    fn put(&self, _: PartId, object: Vec<u8>) -> Result<Receipt, PartStoreError> {
        Ok((&self.runtime.block_on(self.store.put_part(object))?).into())
    }

    fn manifest(&self, package: PackageId) -> Result<BTreeMap<PartId, Receipt>, PartStoreError> {
        Ok(self.runtime.block_on(self.store.manifest(package))?.parts)
    }

    fn get(&self, receipt: &Receipt) -> Result<Bytes, PartStoreError> {
        Ok(self.runtime.block_on(self.store.part(&PartReceipt::try_from(receipt)?))?)
    }

    fn get_each(&self, receipts: &[&Receipt]) -> Result<Vec<Bytes>, PartStoreError> {
        let receipts = receipts.iter().map(|receipt| PartReceipt::try_from(*receipt));
        let receipts = receipts.collect::<Result<Vec<_>, _>>()?;
        let all = try_join_all(receipts.iter().map(|receipt| self.store.part(receipt)));
        Ok(self.runtime.block_on(all)?)
    }
}

/// Parts in memory, for workers of one process. Clones share it.
#[derive(Clone, Default)]
pub struct MemoryPartStore(pub(super) Arc<Mutex<MemoryObjects>>);

#[derive(Default)]
pub(super) struct MemoryObjects {
    pub(super) objects: BTreeMap<String, Bytes>,
    /// The records of saved sums, by their receipts.
    pub(super) sums: BTreeMap<String, SumsRecord>,
    manifests: BTreeMap<PackageId, BTreeMap<PartId, Receipt>>,
}

impl MemoryPartStore {
    /// Puts a package's manifest.
    pub fn commit(&self, package: PackageId, parts: BTreeMap<PartId, Receipt>) {
        lock(&self.0).manifests.insert(package, parts);
    }
}

impl PartStore for MemoryPartStore {
    fn put(&self, part: PartId, object: Vec<u8>) -> Result<Receipt, PartStoreError> {
        let name = format!("part {part}");
        lock(&self.0).objects.insert(name.clone(), object.into());
        Ok(Receipt(name.into()))
    }

    fn manifest(&self, package: PackageId) -> Result<BTreeMap<PartId, Receipt>, PartStoreError> {
        let missing = || PartStoreError::Damaged(format!("package {package} has no manifest"));
        lock(&self.0).manifests.get(&package).cloned().ok_or_else(missing)
    }

    fn get(&self, receipt: &Receipt) -> Result<Bytes, PartStoreError> {
        let missing = || PartStoreError::Damaged(format!("{} is missing", receipt.0));
        lock(&self.0).objects.get(&*receipt.0).cloned().ok_or_else(missing)
    }
}
