//! Saved sums: a worker's Grams of the open package, which others add to their own in place of running their shards.
//!
//! A record names the Grams and is put after them. It says itself by which name and digest each is found, and is named by its own digest.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use obsdiff_proto::message::{Exponents, Receipt};
use obsdiff_proto::{Digest, PackageId, ShardId, SiteId};
use serde::{Deserialize, Serialize};

use super::layout::{self, ObjectKind, SUMS};
use super::part::LOOKUPS;
use super::{JobStore, Result, StoreError};

/// What saved sums are of, and where their Grams are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SumsRecord {
    /// The package that they were gathered for.
    pub package: PackageId,
    /// The exponents of the Grams.
    pub exponents: Exponents,
    /// The shards that they consist of.
    pub shards: BTreeSet<ShardId>,
    /// The Grams.
    pub grams: Vec<SavedGram>,
}

/// A Gram of saved sums.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedGram {
    /// Its site.
    pub site: SiteId,
    /// The group of prompts that it is over, counted from 0; none where it is over all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    /// Where it is.
    pub receipt: SumsReceipt,
}

/// By this a record of saved sums, or one of their Grams, is found and checked. As JSON it is a [`Receipt`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SumsReceipt {
    /// The object, named by its content.
    pub object: String,
    /// The digest of its content.
    pub sha256: Digest,
    /// Its bytes.
    pub bytes: u64,
}

impl SumsReceipt {
    /// The receipt of a record with this content.
    pub fn of_record(content: &[u8]) -> Self {
        let sha256 = Digest::of(content);
        Self { object: record_object(sha256), sha256, bytes: content.len() as u64 }
    }

    /// The receipt of a Gram with this content.
    pub fn of_gram(content: &[u8]) -> Self {
        let sha256 = Digest::of(content);
        Self { object: gram_object(sha256), sha256, bytes: content.len() as u64 }
    }
}

impl From<&SumsReceipt> for Receipt {
    fn from(receipt: &SumsReceipt) -> Self {
        let SumsReceipt { object, sha256, bytes } = receipt;
        Self(format!(r#"{{"object":"{object}","sha256":"{sha256}","bytes":{bytes}}}"#).into())
    }
}

/// The receipt of a record.
impl TryFrom<&Receipt> for SumsReceipt {
    type Error = StoreError;

    fn try_from(receipt: &Receipt) -> Result<Self> {
        let refused = |problem: String| StoreError::Receipt { of: "saved sums", problem };
        let receipt: Self = serde_json::from_str(&receipt.0).map_err(|e| refused(e.to_string()))?;
        if receipt.object == record_object(receipt.sha256) {
            Ok(receipt)
        } else {
            Err(refused(format!("it names {} for the digest {}", receipt.object, receipt.sha256)))
        }
    }
}

fn record_object(sha256: Digest) -> String {
    format!("{SUMS}/{sha256}.json")
}

fn gram_object(sha256: Digest) -> String {
    format!("{SUMS}/{sha256}.safetensors")
}

impl JobStore {
    /// Puts a Gram of sums that are being saved, a safetensors file. Its content must differ from that of every other Gram that is saved:
    /// one that has the same content has the same name, and goes when either is removed.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put_gram_of_sums(&self, content: Vec<u8>) -> Result<SumsReceipt> {
        let bytes = content.len() as u64;
        let content = Bytes::from(content);
        let sha256 = self.digest(&content).await?;
        let object = gram_object(sha256);
        self.put_as_worker(&object, content).await?;
        Ok(SumsReceipt { object, sha256, bytes })
    }

    /// Puts the record of saved sums, whose Grams are there.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put_sums(&self, record: &SumsRecord) -> Result<Receipt> {
        let content = self.seal(SUMS, record)?;
        let receipt = SumsReceipt::of_record(&content);
        self.put_as_worker(&receipt.object, content.into()).await?;
        Ok(Receipt::from(&receipt))
    }

    /// The record of saved sums, all of whose Grams are there in the sizes that they were put with.
    ///
    /// # Errors
    /// When the record or a Gram is missing, truncated or damaged, or the store fails.
    pub async fn sums(&self, receipt: &Receipt) -> Result<SumsRecord> {
        let record = self.sums_record(&SumsReceipt::try_from(receipt)?).await?;
        self.check_grams(&record).await?;
        Ok(record)
    }

    /// A Gram of saved sums, as it was put.
    ///
    /// # Errors
    /// When it is missing, truncated or damaged, or the store fails.
    pub async fn gram_of_sums(&self, receipt: &SumsReceipt) -> Result<Bytes> {
        self.checked(&receipt.object, receipt.sha256, receipt.bytes).await
    }

    /// All saved sums that can be used, in the order of their names. It is said of others that their shards are run again.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn saved_sums(&self) -> Result<Vec<(Receipt, SumsRecord)>> {
        let mut saved = Vec::new();
        for object in self.objects_of_sums(ObjectKind::SumsRecord).await? {
            match self.listed_sums(&object).await {
                Ok(sums) => saved.push(sums),
                Err(
                    error @ (StoreError::Missing { .. }
                    | StoreError::Size { .. }
                    | StoreError::Damaged { .. }
                    | StoreError::Format { .. }),
                ) => tracing::warn!("saved sums are not used, and their shards are run again: {error}"),
                Err(error) => return Err(error),
            }
        }
        Ok(saved)
    }

    /// Removes saved sums: the record first, then its Grams. What is missing is removed already.
    ///
    /// # Errors
    /// When the record is damaged, or the store fails.
    pub async fn remove_sums(&self, receipt: &Receipt) -> Result<()> {
        let receipt = SumsReceipt::try_from(receipt)?;
        let record = match self.sums_record(&receipt).await {
            Err(StoreError::Missing { .. }) => return Ok(()),
            read => read?,
        };
        self.delete(&receipt.object).await?;
        let grams: Vec<SumsReceipt> = record.grams.into_iter().map(|gram| gram.receipt).collect();
        self.remove_grams_of_sums(&grams).await
    }

    /// Removes Grams that no record names. What is missing is removed already.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn remove_grams_of_sums(&self, grams: &[SumsReceipt]) -> Result<()> {
        self.delete_each(grams.iter().map(|gram| gram.object.clone()).collect()).await
    }

    /// Removes all saved sums: their package is committed. Records go first. What is missing is removed already.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn remove_all_sums(&self) -> Result<()> {
        for kind in [ObjectKind::SumsRecord, ObjectKind::GramOfSums] {
            self.delete_each(self.objects_of_sums(kind).await?).await?;
        }
        Ok(())
    }

    async fn delete_each(&self, objects: Vec<String>) -> Result<()> {
        let delete = |object: String| async move { self.delete(&object).await };
        stream::iter(objects).map(delete).buffered(LOOKUPS).try_collect().await
    }

    async fn objects_of_sums(&self, kind: ObjectKind) -> Result<Vec<String>> {
        let objects = self.list(SUMS).await?.into_iter().map(|name| format!("{SUMS}/{name}"));
        Ok(objects.filter(|object| layout::kind(object) == Some(kind)).collect())
    }

    /// Saved sums by the name of their record.
    async fn listed_sums(&self, object: &str) -> Result<(Receipt, SumsRecord)> {
        let content = self.get(object).await?;
        let receipt = SumsReceipt::of_record(&content);
        if receipt.object != object {
            return Err(self.damaged(object, &format!("its content has the digest {}", receipt.sha256)));
        }
        let record = self.unsealed_sums(object, &content)?;
        self.check_grams(&record).await?;
        Ok((Receipt::from(&receipt), record))
    }

    async fn sums_record(&self, receipt: &SumsReceipt) -> Result<SumsRecord> {
        let content = self.checked(&receipt.object, receipt.sha256, receipt.bytes).await?;
        self.unsealed_sums(&receipt.object, &content)
    }

    fn unsealed_sums(&self, object: &str, content: &[u8]) -> Result<SumsRecord> {
        let record: SumsRecord = self.unseal(object, content)?;
        let receipts = record.grams.iter().map(|gram| &gram.receipt);
        match receipts.into_iter().find(|receipt| receipt.object != gram_object(receipt.sha256)) {
            Some(other) => Err(self.damaged(object, &format!("it names {} for a Gram", other.object))),
            None if record.shards.is_empty() => Err(self.damaged(object, "it is of no shard")),
            None => Ok(record),
        }
    }

    async fn check_grams(&self, record: &SumsRecord) -> Result<()> {
        let check = |receipt: SumsReceipt| async move {
            self.check_size(&receipt.object, self.size(&receipt.object).await?, receipt.bytes)
        };
        let receipts: Vec<SumsReceipt> = record.grams.iter().map(|gram| gram.receipt.clone()).collect();
        stream::iter(receipts).map(check).buffered(LOOKUPS).try_collect().await
    }
}

#[cfg(test)]
mod tests;
