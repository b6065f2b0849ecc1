//! The pruned weights of a part, and the receipt by which they are found and checked.

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use obsdiff_proto::Digest;
use obsdiff_proto::message::Receipt;
use serde::{Deserialize, Serialize};

use super::layout::PARTS;
use super::{JobStore, Result, StoreError};

/// How many objects are looked up at a time.
pub(super) const LOOKUPS: usize = 16;

/// By this a part's weights are found and checked. As JSON it is a [`Receipt`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartReceipt {
    /// The object, named by its content.
    pub object: String,
    /// The digest of its content.
    pub sha256: Digest,
    /// Its bytes.
    pub bytes: u64,
}

impl From<&PartReceipt> for Receipt {
    fn from(receipt: &PartReceipt) -> Self {
        let PartReceipt { object, sha256, bytes } = receipt;
        Self(format!(r#"{{"object":"{object}","sha256":"{sha256}","bytes":{bytes}}}"#).into())
    }
}

impl TryFrom<&Receipt> for PartReceipt {
    type Error = StoreError;

    fn try_from(receipt: &Receipt) -> Result<Self> {
        let refused = |problem: String| StoreError::Receipt { of: "a part", problem };
        let receipt: Self = serde_json::from_str(&receipt.0).map_err(|e| refused(e.to_string()))?;
        if receipt.object == object(receipt.sha256) {
            Ok(receipt)
        } else {
            Err(refused(format!("it names {} for the digest {}", receipt.object, receipt.sha256)))
        }
    }
}

fn object(sha256: Digest) -> String {
    format!("{PARTS}/{sha256}.safetensors")
}

impl JobStore {
    /// Puts a part's weights, a safetensors file. The same content gets the same name, so solving a part again does no harm.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put_part(&self, content: Vec<u8>) -> Result<PartReceipt> {
        let bytes = content.len() as u64;
        let content = Bytes::from(content);
        let sha256 = self.digest(&content).await?;
        let object = object(sha256);
        self.put_as_worker(&object, content).await?;
        Ok(PartReceipt { object, sha256, bytes })
    }

    /// Reads a part's weights, as they were put.
    ///
    /// # Errors
    /// When the object is missing, truncated or damaged, or the store fails.
    pub async fn part(&self, receipt: &PartReceipt) -> Result<Bytes> {
        self.checked(&receipt.object, receipt.sha256, receipt.bytes).await
    }

    /// Checks that the objects of these receipts exist and have the sizes that they were put with.
    ///
    /// # Errors
    /// When one is not, or the store fails.
    pub async fn check_parts(&self, receipts: Vec<PartReceipt>) -> Result<()> {
        let check = |receipt: PartReceipt| async move {
            self.check_size(&receipt.object, self.size(&receipt.object).await?, receipt.bytes)
        };
        stream::iter(receipts).map(check).buffered(LOOKUPS).try_collect().await
    }

    /// Reads an object that was put with this digest and so many bytes.
    pub(super) async fn checked(&self, object: &str, sha256: Digest, bytes: u64) -> Result<Bytes> {
        let content = self.get(object).await?;
        self.check_size(object, content.len() as u64, bytes)?;
        let found = self.digest(&content).await?;
        if found == sha256 { Ok(content) } else { Err(self.misdigested(object, found, sha256)) }
    }

    pub(super) fn check_size(&self, object: &str, found: u64, wanted: u64) -> Result<()> {
        if found == wanted {
            return Ok(());
        }
        let (store, object) = (self.name().to_owned(), object.to_owned());
        Err(StoreError::Size { store, object, found, wanted })
    }

    /// The digest of a large content, computed on a thread that may block.
    pub(super) async fn digest(&self, content: &Bytes) -> Result<Digest> {
        let content = content.clone();
        let digest = tokio::task::spawn_blocking(move || Digest::of(&content));
        digest.await.map_err(|e| self.damaged(PARTS, &format!("its digest was not computed: {e}")))
    }
}
