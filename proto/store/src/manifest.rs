//! Manifests: a package's pruned weights count once its manifest is there.

use std::path::Path;

use obsdiff_proto::message::{Exponents, Manifest, PartId, Receipt};
use obsdiff_proto::{PackageId, SiteId};
use serde::{Deserialize, Serialize};

use super::layout::PACKAGES;
use super::{JobStore, PartReceipt, Result, StoreError};

/// A [`Manifest`] as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManifestRecord {
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
    /// The receipts of all its parts.
    pub fn receipts(&self) -> Vec<PartReceipt> {
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
    /// The manifest of a committed package.
    ///
    /// # Errors
    /// When it is missing, damaged or another package's, or the store fails.
    pub async fn manifest(&self, package: PackageId) -> Result<Manifest> {
        Ok(Manifest::from(&self.manifest_record(package).await?))
    }

    /// The manifest of a committed package, as it is stored.
    ///
    /// # Errors
    /// As [`JobStore::manifest`] has.
    pub async fn manifest_record(&self, package: PackageId) -> Result<ManifestRecord> {
        let object = manifest_object(package);
        let record: ManifestRecord = self.sealed(&object).await?;
        if record.package == package {
            Ok(record)
        } else {
            Err(self.damaged(&object, &format!("it is the manifest of package {}", record.package)))
        }
    }
}

/// How many packages in a row have a manifest in the directory of a job's state; 0 where `folder` is no directory. Unlike a coordinator,
/// which learns of a commit when the store has answered, this sees it from the moment at which it counts.
pub fn manifests_in(folder: &Path) -> usize {
    (0..).take_while(|id| folder.join(manifest_object(PackageId(*id))).is_file()).count()
}

/// The name of a package's manifest.
pub fn manifest_object(package: PackageId) -> String {
    format!("{PACKAGES}/{:05}.json", package.0)
}
