//! What a coordinator keeps for the next one, besides packages. Each has objects of its own, named by its life: a coordinator that is left
//! over may still write one after it has a successor, and that must not be read in the place of what the successor wrote.

use obsdiff_proto::message::Exponents;
use obsdiff_store::Result;
use obsdiff_store::layout::{EXPONENTS, HARDWARE, METRICS};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::CoordinatorStore;

impl CoordinatorStore {
    /// Keeps the exponents as the coordinator of this life knows them, in place of those that it kept before.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put_exponents(&self, life: u32, exponents: &Exponents) -> Result<()> {
        self.put_sealed(&object(EXPONENTS, life), exponents).await
    }

    /// The exponents that the last coordinator kept of those that kept any.
    ///
    /// # Errors
    /// When they are damaged, or the store fails.
    pub async fn exponents(&self) -> Result<Option<Exponents>> {
        self.last_kept(EXPONENTS).await
    }

    /// Keeps the kind of hardware of the job's workers, as the coordinator of this life found it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put_hardware(&self, life: u32, hardware: &str) -> Result<()> {
        self.put_sealed(&object(HARDWARE, life), &hardware).await
    }

    /// The kind of hardware that the last coordinator kept of those that kept any.
    ///
    /// # Errors
    /// When it is damaged, or the store fails.
    pub async fn hardware(&self) -> Result<Option<String>> {
        self.last_kept(HARDWARE).await
    }

    /// Keeps the metrics of a coordinator that stops before the job is done, as text in Prometheus' format: nobody may have read them.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put_metrics(&self, text: &str) -> Result<()> {
        self.put_sealed(METRICS, &text).await
    }

    /// The metrics that were kept.
    ///
    /// # Errors
    /// When they are damaged, or the store fails.
    pub async fn metrics(&self) -> Result<Option<String>> {
        self.sealed_if_any(METRICS).await
    }

    /// The object of the latest life in a folder.
    async fn last_kept<T: Serialize + DeserializeOwned>(&self, folder: &str) -> Result<Option<T>> {
        let names = self.list(folder).await?;
        let lives = names.iter().filter_map(|name| name.strip_suffix(".json")?.parse::<u32>().ok());
        match lives.max() {
            Some(life) => self.sealed_if_any(&object(folder, life)).await,
            None => Ok(None),
        }
    }
}

/// The object that the coordinator of this life keeps in a folder.
fn object(folder: &str, life: u32) -> String {
    format!("{folder}/{life:08}.json")
}
