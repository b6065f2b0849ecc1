//! What of a job must outlive its coordinator.

use obsdiff_core::Exponents;
use obsdiff_proto::message::Manifest;

use crate::CoordinatorStore;

/// Where manifests and exponents are written.
#[tonic::async_trait]
pub trait Records: Send + Sync {
    /// Puts a package's manifest, atomically. Putting the same one again does no harm.
    ///
    /// # Errors
    /// What the store said.
    async fn commit(&self, manifest: &Manifest) -> Result<(), String>;

    /// Saves the exponents of all sites.
    ///
    /// # Errors
    /// What the store said.
    async fn save(&self, exponents: &Exponents) -> Result<(), String>;

    /// The life of a later coordinator of the same job, if there is one.
    async fn successor(&self) -> Option<u32>;

    /// Saves the kind of hardware of the job's workers.
    ///
    /// # Errors
    /// What the store said.
    async fn save_hardware(&self, hardware: &str) -> Result<(), String>;
}

/// A job's store, as the coordinator of one life writes it.
pub struct StoreRecords {
    /// The store.
    pub store: CoordinatorStore,
    /// The coordinator's life.
    pub life: u32,
}

#[tonic::async_trait]
impl Records for StoreRecords {
    async fn commit(&self, manifest: &Manifest) -> Result<(), String> {
        self.store.commit(manifest).await.map_err(|e| e.to_string())
    }

    async fn save(&self, exponents: &Exponents) -> Result<(), String> {
        self.store.put_exponents(exponents).await.map_err(|e| e.to_string())
    }

    async fn successor(&self) -> Option<u32> {
        match self.store.latest_life().await {
            Ok(latest) => latest.filter(|latest| *latest > self.life),
            Err(error) => {
                // A store that fails is told of where it holds the job up.
                tracing::debug!(%error, "the lives of the job are not known");
                None
            }
        }
    }

    async fn save_hardware(&self, hardware: &str) -> Result<(), String> {
        self.store.put_hardware(hardware).await.map_err(|e| e.to_string())
    }
}
