//! Manifests: what makes a package's pruned weights count. And the exponents that the next package starts from.

use obsdiff_proto::message::{Exponents, Manifest, PartId, Receipt};
use obsdiff_proto::{PackageId, SiteId};
use serde::{Deserialize, Serialize};

use super::layout::{EXPONENTS, HARDWARE, PACKAGES};
use super::objects::Put;
use super::{JobStore, PartReceipt, Result, StoreError};

/// A [`Manifest`] as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct ManifestRecord {
    package: PackageId,
    exponents: Exponents,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hardware: Option<String>,
    parts: Vec<PartRecord>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct PartRecord {
    site: SiteId,
    index: u32,
    receipt: PartReceipt,
}

impl PartRecord {
    fn id(&self, package: PackageId) -> PartId {
        PartId { package, site: self.site, index: self.index }
    }
}

impl ManifestRecord {
    fn receipts(&self) -> Vec<PartReceipt> {
        self.parts.iter().map(|part| part.receipt.clone()).collect()
    }
}

impl TryFrom<&Manifest> for ManifestRecord {
    type Error = StoreError;

    fn try_from(manifest: &Manifest) -> Result<Self> {
        let package = manifest.package;
        let part = |(part, receipt): (&PartId, &Receipt)| {
            if part.package != package {
                return Err(StoreError::OtherPackage { part: *part, package });
            }
            Ok(PartRecord { site: part.site, index: part.index, receipt: receipt.try_into()? })
        };
        let parts = manifest.parts.iter().map(part).collect::<Result<_>>()?;
        let (exponents, hardware) = (manifest.exponents.clone(), manifest.hardware.clone());
        Ok(Self { package, exponents, hardware, parts })
    }
}

impl From<&ManifestRecord> for Manifest {
    fn from(record: &ManifestRecord) -> Self {
        let part = |part: &PartRecord| (part.id(record.package), Receipt::from(&part.receipt));
        Self {
            package: record.package,
            exponents: record.exponents.clone(),
            hardware: record.hardware.clone(),
            parts: record.parts.iter().map(part).collect(),
        }
    }
}

impl JobStore {
    /// Commits a package: its manifest is put once the weights of all its parts are there. The same manifest may be put again.
    ///
    /// # Errors
    /// When a part's object is missing or truncated, another manifest stands in its place, or the store fails.
    pub async fn commit(&self, manifest: &Manifest) -> Result<()> {
        let record = ManifestRecord::try_from(manifest)?;
        self.check_parts(record.receipts()).await?;
        let object = object(manifest.package);
        if self.put_sealed_new(&object, &record).await? == Put::Present {
            let present: ManifestRecord = self.sealed(&object).await?;
            if present != record {
                return Err(StoreError::Conflict { store: self.name().to_owned(), object });
            }
        }
        Ok(())
    }

    /// The manifest of a committed package.
    ///
    /// # Errors
    /// When it is missing, damaged or another package's, or the store fails.
    pub async fn manifest(&self, package: PackageId) -> Result<Manifest> {
        Ok(Manifest::from(&self.record(package).await?))
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
    pub(super) async fn packages(&self) -> Result<impl Iterator<Item = PackageId> + use<>> {
        let names = self.list(PACKAGES).await?;
        let last = names.iter().filter_map(|name| name.strip_suffix(".json")?.parse::<u32>().ok()).max();
        Ok((0..last.map_or(0, |last| last.saturating_add(1))).map(PackageId))
    }

    /// The manifest of a package, once its parts are known to be there.
    pub(super) async fn complete(&self, package: PackageId) -> Result<Manifest> {
        let record = self.record(package).await?;
        self.check_parts(record.receipts()).await?;
        Ok(Manifest::from(&record))
    }

    async fn record(&self, package: PackageId) -> Result<ManifestRecord> {
        let object = object(package);
        let record: ManifestRecord = self.sealed(&object).await?;
        if record.package == package {
            Ok(record)
        } else {
            Err(self.damaged(&object, &format!("it is the manifest of package {}", record.package)))
        }
    }

    /// Keeps the exponents for the next coordinator, in place of those kept before.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put_exponents(&self, exponents: &Exponents) -> Result<()> {
        self.put_sealed(EXPONENTS, exponents).await
    }

    /// Keeps the kind of hardware of the job's workers for the next coordinator.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put_hardware(&self, hardware: &str) -> Result<()> {
        self.put_sealed(HARDWARE, &hardware).await
    }

    /// The kind of hardware that was kept.
    ///
    /// # Errors
    /// When it is damaged, or the store fails.
    pub async fn hardware(&self) -> Result<Option<String>> {
        self.sealed_if_any(HARDWARE).await
    }

    /// The exponents last kept.
    ///
    /// # Errors
    /// When they are damaged, or the store fails.
    pub async fn exponents(&self) -> Result<Option<Exponents>> {
        self.sealed_if_any(EXPONENTS).await
    }
}

fn object(package: PackageId) -> String {
    format!("{PACKAGES}/{:05}.json", package.0)
}
