//! What of a job must outlive its coordinator.

use obsdiff_core::Exponents;
use obsdiff_proto::message::Manifest;
use obsdiff_worker::device::MemoryShelf;
use obsdiff_worker::store::JobStore;

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
}

/// A job's store.
pub struct StoreRecords(pub JobStore);

#[tonic::async_trait]
impl Records for StoreRecords {
    async fn commit(&self, manifest: &Manifest) -> Result<(), String> {
        self.0.commit(manifest).await.map_err(|e| e.to_string())
    }

    async fn save(&self, exponents: &Exponents) -> Result<(), String> {
        self.0.put_exponents(exponents).await.map_err(|e| e.to_string())
    }
}

/// Records that end with the process, beside weights in memory.
pub struct MemoryRecords(pub MemoryShelf);

#[tonic::async_trait]
impl Records for MemoryRecords {
    async fn commit(&self, manifest: &Manifest) -> Result<(), String> {
        self.0.commit(manifest.package, manifest.parts.clone());
        Ok(())
    }

    async fn save(&self, _: &Exponents) -> Result<(), String> {
        Ok(())
    }
}
