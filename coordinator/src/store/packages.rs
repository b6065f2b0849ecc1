//! Committing packages in order, and reading them back in the next coordinator.

use obsdiff_proto::PackageId;
use obsdiff_proto::message::Manifest;
use obsdiff_store::layout::PACKAGES;
use obsdiff_store::{ManifestRecord, PutOutcome, Result, StoreError, manifest_object};

use super::CoordinatorStore;

impl CoordinatorStore {
    /// Commits a package: its manifest is put once the weights of all its parts are there. The same manifest may be put again.
    ///
    /// # Errors
    /// When a part's object is missing or truncated, another manifest stands in its place, or the store fails.
    pub async fn commit(&self, manifest: &Manifest) -> Result<()> {
        let record = ManifestRecord::try_from(manifest)?;
        self.check_parts(record.receipts()).await?;
        let object = manifest_object(manifest.package);
        if self.put_sealed_new(&object, &record).await? == PutOutcome::Present {
            let present: ManifestRecord = self.sealed(&object).await?;
            if present != record {
                return Err(StoreError::Conflict { store: self.name().to_owned(), object });
            }
        }
        Ok(())
    }

    /// The manifests of all committed packages, in order. Their parts are known to be there, with the sizes that they had.
    ///
    /// # Errors
    /// When a manifest before the last or a part is missing, something is damaged, or the store fails.
    pub async fn committed(&self) -> Result<Vec<Manifest>> {
        let mut manifests = Vec::new();
        for package in self.packages().await? {
            manifests.push(self.complete(package).await?);
        }
        Ok(manifests)
    }

    /// The packages up to the last one that has a manifest.
    async fn packages(&self) -> Result<impl Iterator<Item = PackageId> + use<>> {
        let names = self.list(PACKAGES).await?;
        let last = names.iter().filter_map(|name| name.strip_suffix(".json")?.parse::<u32>().ok()).max();
        Ok((0..last.map_or(0, |last| last.saturating_add(1))).map(PackageId))
    }

    /// The manifest of a package, once its parts are known to be there.
    async fn complete(&self, package: PackageId) -> Result<Manifest> {
        let record = self.manifest_record(package).await?;
        self.check_parts(record.receipts()).await?;
        Ok(Manifest::from(&record))
    }

    /// The manifests of all committed packages, as [`CoordinatorStore::committed`] gives them. Where a manifest or weights are missing,
    /// as they are where somebody removed a damaged object, the job goes back to the package before: the manifests from there on are
    /// removed. Gives the first package that is run again, if one is.
    ///
    /// # Errors
    /// When something is damaged, or the store fails.
    pub async fn recover(&self) -> Result<(Vec<Manifest>, Option<PackageId>)> {
        let mut manifests = Vec::new();
        for package in self.packages().await? {
            match self.complete(package).await {
                Ok(manifest) => manifests.push(manifest),
                Err(StoreError::Missing { .. }) => {
                    self.discard_manifests_from(package).await?;
                    return Ok((manifests, Some(package)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((manifests, None))
    }
}
