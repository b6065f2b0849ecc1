//! The records of a job that outlive its coordinator.

use obsdiff_core::Exponents;
use obsdiff_proto::PackageId;
use obsdiff_proto::message::Manifest;
use obsdiff_store::LinearFigures;

use crate::CoordinatorStore;

/// Writes manifests and exponents.
#[tonic::async_trait]
pub trait Records: Send + Sync {
    /// Writes a package's manifest atomically. The same manifest may be written again.
    ///
    /// # Errors
    /// The store's error, in words.
    async fn commit(&self, manifest: &Manifest) -> Result<(), String>;

    /// Saves the exponents of all sites.
    ///
    /// # Errors
    /// The store's error, in words.
    async fn save(&self, exponents: &Exponents) -> Result<(), String>;

    /// The life of a later coordinator of the same job, if there is one.
    ///
    /// # Errors
    /// The store's error, in words.
    async fn successor(&self) -> Result<Option<u32>, String>;

    /// Saves the kind of hardware of the job's workers.
    ///
    /// # Errors
    /// The store's error, in words.
    async fn save_hardware(&self, hardware: &str) -> Result<(), String>;

    /// Removes the sums that workers have saved.
    ///
    /// # Errors
    /// The store's error, in words.
    async fn forget_sums(&self) -> Result<(), String> {
        Ok(())
    }

    /// What became of the linears of a committed package, for people to look at. Nothing depends on it.
    ///
    /// # Errors
    /// The store's error, in words.
    async fn linear_figures(&self, _: PackageId) -> Result<Vec<LinearFigures>, String> {
        Ok(Vec::new())
    }
}

/// A job's store, written by the coordinator with one life.
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
        self.store.put_exponents(self.life, exponents).await.map_err(|e| e.to_string())
    }

    async fn successor(&self) -> Result<Option<u32>, String> {
        let latest = self.store.latest_life().await.map_err(|e| e.to_string())?;
        Ok(latest.filter(|latest| *latest > self.life))
    }

    async fn save_hardware(&self, hardware: &str) -> Result<(), String> {
        self.store.put_hardware(self.life, hardware).await.map_err(|e| e.to_string())
    }

    async fn forget_sums(&self) -> Result<(), String> {
        self.store.remove_all_sums().await.map_err(|e| e.to_string())
    }

    async fn linear_figures(&self, package: PackageId) -> Result<Vec<LinearFigures>, String> {
        self.store.linear_figures(package).await.map_err(|e| e.to_string())
    }
}
