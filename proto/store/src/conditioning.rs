//! The conditioning of a job's prompts: made once, and read by every worker.
//!
//! An object is named by the digest of everything that decides its content. An object that exists under a name is therefore the right
//! one, whoever made it and when.

use std::collections::BTreeSet;

use bytes::Bytes;
use obsdiff_proto::Digest;

use super::layout::CONDITIONING;
use super::{JobStore, Result, StoreError};

/// The object with the conditioning of some prompts; `key` is the digest of everything that decides it.
pub fn conditioning_object(key: Digest) -> String {
    format!("{CONDITIONING}/{key}.safetensors")
}

impl JobStore {
    /// The conditioning objects that are there, by name.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn conditionings(&self) -> Result<BTreeSet<String>> {
        let names = self.list(CONDITIONING).await?;
        Ok(names.into_iter().map(|name| format!("{CONDITIONING}/{name}")).collect())
    }

    /// Puts a conditioning object. Every worker makes the same one, so putting it again does no harm, and replaces one that is damaged.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put_conditioning(&self, key: Digest, content: Vec<u8>) -> Result<()> {
        self.put_as_worker(&conditioning_object(key), content.into()).await
    }

    /// Reads a conditioning object. The caller checks the digest that it carries.
    ///
    /// # Errors
    /// When it is missing, or the store fails.
    pub async fn conditioning(&self, key: Digest) -> Result<Bytes> {
        self.get(&conditioning_object(key)).await
    }

    /// The error of a conditioning object that is not what was put.
    pub fn damaged_conditioning(&self, key: Digest, problem: &str) -> StoreError {
        self.damaged(&conditioning_object(key), problem)
    }
}
