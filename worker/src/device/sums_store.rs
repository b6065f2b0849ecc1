//! Where sums are saved between the worker that gathered them and those that add them to their own.

use bytes::Bytes;
use obsdiff_proto::lock;
use obsdiff_proto::message::Receipt;
use obsdiff_store::{SumsReceipt, SumsRecord};

use super::part_store::{JobPartStore, MemoryPartStore, PartStoreError};

/// Stores Grams of sums as objects, with the records that name them. Calls block.
pub trait SumsStore: Send + Sync {
    /// Puts a Gram, whose content no other Gram has.
    ///
    /// # Errors
    /// When it cannot be written.
    fn put_gram(&self, content: Vec<u8>) -> Result<SumsReceipt, PartStoreError>;

    /// Puts the record of Grams that are there.
    ///
    /// # Errors
    /// When it cannot be written.
    fn put_sums(&self, record: &SumsRecord) -> Result<Receipt, PartStoreError>;

    /// A record, whose Grams are there.
    ///
    /// # Errors
    /// When it or a Gram is missing, damaged or cannot be read.
    fn sums(&self, receipt: &Receipt) -> Result<SumsRecord, PartStoreError>;

    /// A Gram, as it was put.
    ///
    /// # Errors
    /// When it is missing, damaged or cannot be read.
    fn gram(&self, receipt: &SumsReceipt) -> Result<Bytes, PartStoreError>;

    /// Removes a record, and then its Grams. What is missing is removed already.
    ///
    /// # Errors
    /// When the record is damaged, or something cannot be removed.
    fn remove_sums(&self, receipt: &Receipt) -> Result<(), PartStoreError>;

    /// Removes Grams that no record names.
    ///
    /// # Errors
    /// When one cannot be removed.
    fn remove_grams(&self, grams: &[SumsReceipt]) -> Result<(), PartStoreError>;
}

impl SumsStore for JobPartStore {
    fn put_gram(&self, content: Vec<u8>) -> Result<SumsReceipt, PartStoreError> {
        Ok(self.runtime.block_on(self.store.put_gram_of_sums(content))?)
    }

    fn put_sums(&self, record: &SumsRecord) -> Result<Receipt, PartStoreError> {
        Ok(self.runtime.block_on(self.store.put_sums(record))?)
    }

    fn sums(&self, receipt: &Receipt) -> Result<SumsRecord, PartStoreError> {
        Ok(self.runtime.block_on(self.store.sums(receipt))?)
    }

    fn gram(&self, receipt: &SumsReceipt) -> Result<Bytes, PartStoreError> {
        Ok(self.runtime.block_on(self.store.gram_of_sums(receipt))?)
    }

    fn remove_sums(&self, receipt: &Receipt) -> Result<(), PartStoreError> {
        Ok(self.runtime.block_on(self.store.remove_sums(receipt))?)
    }

    fn remove_grams(&self, grams: &[SumsReceipt]) -> Result<(), PartStoreError> {
        Ok(self.runtime.block_on(self.store.remove_grams_of_sums(grams))?)
    }
}

impl MemoryPartStore {
    /// All saved sums.
    pub fn saved_sums(&self) -> Vec<(Receipt, SumsRecord)> {
        let store = lock(&self.0);
        store
            .sums
            .iter()
            .map(|(receipt, record)| (Receipt(receipt.as_str().into()), record.clone()))
            .collect()
    }

    /// Removes all saved sums.
    pub fn remove_all_sums(&self) {
        let store = &mut *lock(&self.0);
        for record in std::mem::take(&mut store.sums).into_values() {
            record.grams.iter().for_each(|gram| drop(store.objects.remove(&gram.receipt.object)));
        }
    }
}

impl SumsStore for MemoryPartStore {
    fn put_gram(&self, content: Vec<u8>) -> Result<SumsReceipt, PartStoreError> {
        let receipt = SumsReceipt::of_gram(&content);
        lock(&self.0).objects.insert(receipt.object.clone(), content.into());
        Ok(receipt)
    }

    fn put_sums(&self, record: &SumsRecord) -> Result<Receipt, PartStoreError> {
        let content =
            serde_json::to_vec(record).map_err(|error| PartStoreError::Damaged(error.to_string()))?;
        let receipt = Receipt::from(&SumsReceipt::of_record(&content));
        lock(&self.0).sums.insert(receipt.0.to_string(), record.clone());
        Ok(receipt)
    }

    fn sums(&self, receipt: &Receipt) -> Result<SumsRecord, PartStoreError> {
        let missing = |what: &str| PartStoreError::Damaged(format!("{what} is missing"));
        let store = lock(&self.0);
        let record = store.sums.get(&*receipt.0).ok_or_else(|| missing(&receipt.0))?;
        let lost = record.grams.iter().find(|gram| !store.objects.contains_key(&gram.receipt.object));
        lost.map_or_else(|| Ok(record.clone()), |gram| Err(missing(&gram.receipt.object)))
    }

    fn gram(&self, receipt: &SumsReceipt) -> Result<Bytes, PartStoreError> {
        let missing = || PartStoreError::Damaged(format!("{} is missing", receipt.object));
        lock(&self.0).objects.get(&receipt.object).cloned().ok_or_else(missing)
    }

    fn remove_sums(&self, receipt: &Receipt) -> Result<(), PartStoreError> {
        let Some(record) = lock(&self.0).sums.remove(&*receipt.0) else { return Ok(()) };
        let grams: Vec<_> = record.grams.into_iter().map(|gram| gram.receipt).collect();
        self.remove_grams(&grams)
    }

    fn remove_grams(&self, grams: &[SumsReceipt]) -> Result<(), PartStoreError> {
        let mut store = lock(&self.0);
        grams.iter().for_each(|gram| drop(store.objects.remove(&gram.object)));
        Ok(())
    }
}
