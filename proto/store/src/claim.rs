//! Claiming a store for a job: its marker makes it the job's, and only objects that the job put there are removed.

use futures_util::TryStreamExt;
use futures_util::future::try_join_all;
use object_store::ObjectStoreExt;
use obsdiff_files::Disk;
use obsdiff_proto::{Digest, JobSpec, PackageId};
use serde::{Deserialize, Serialize};

use super::layout::{self, MARKER, ObjectKind};
use super::objects::of_a_file;
use super::{JobStore, Result, StoreError};

/// How many objects are removed at a time.
const REMOVALS: usize = 16;

/// The marker's content.
#[derive(Debug, Serialize, Deserialize)]
struct ClaimMarker {
    /// An explanation for people who find it.
    holds: String,
    /// The digest of the job's specification.
    job: Digest,
    /// How many folders were made for the store, its own included.
    made: u32,
}

impl JobStore {
    /// Marks an empty store as that of a job of this specification. A store that holds anything but a job's state is refused.
    ///
    /// # Errors
    /// When it holds anything else, its marker is damaged, or the store fails.
    pub async fn claim(&self, spec: &JobSpec) -> Result<()> {
        self.mark(spec).await?;
        let Some(directory) = &self.directory else { return Ok(()) };
        directory.make_folders().map_err(|e| {
            StoreError::of((self.name(), layout::PARTS), "written", 1, of_a_file(layout::PARTS, e))
        })
    }

    async fn mark(&self, spec: &JobSpec) -> Result<()> {
        let objects = self.known_objects().await?;
        if objects.iter().any(|(kind, _)| *kind == ObjectKind::Marker) {
            return self.sealed::<ClaimMarker>(MARKER).await.map(|_| ());
        }
        if let Some((_, object)) = objects.into_iter().next() {
            return Err(StoreError::Unmarked { store: self.name().to_owned(), object });
        }
        let marker = ClaimMarker {
            holds: "the state of an obsdiff job, which obsdiff removes when the job is done".to_owned(),
            job: self.digest_of(spec)?,
            made: self.directory.as_ref().map_or(0, |directory| directory.made()),
        };
        self.put_sealed_new(MARKER, &marker).await.map(|_| ())
    }

    /// Whether the store is marked as that of a job of this specification. The marker is the last object to be removed.
    ///
    /// # Errors
    /// When the marker is damaged, or the store fails.
    pub async fn is_of(&self, spec: &JobSpec) -> Result<bool> {
        let marker = self.sealed_if_any::<ClaimMarker>(MARKER).await?;
        let job = self.digest_of(spec)?;
        Ok(marker.is_some_and(|marker| marker.job == job))
    }

    fn digest_of(&self, spec: &JobSpec) -> Result<Digest> {
        let json = serde_json::to_vec(spec).map_err(|e| self.damaged(MARKER, &e.to_string()))?;
        Ok(Digest::of(&json))
    }

    /// Removes a job's results: saved sums, manifests, exponents, the kind of hardware and parts. The marker and the job itself stay.
    ///
    /// # Errors
    /// When the store fails, or holds anything that is not obsdiff's.
    pub async fn discard_results(&self) -> Result<()> {
        self.discard(|kind| kind <= ObjectKind::Part).await
    }

    /// Removes the manifests of a package and of those after it, the last one first, and before them all saved sums, which were gathered on
    /// the model that these manifests make.
    ///
    /// # Errors
    /// As [`JobStore::discard_results`] has.
    pub async fn discard_manifests_from(&self, package: PackageId) -> Result<()> {
        let goes = |kind| match kind {
            ObjectKind::SumsRecord | ObjectKind::GramOfSums => true,
            ObjectKind::Manifest(number) => number.0 >= package.0,
            _ => false,
        };
        self.discard(goes).await
    }

    /// Removes the job's state: every object that obsdiff put here, and no other.
    ///
    /// # Errors
    /// When the store fails. What is left then is a valid state of the same job, or of no job.
    pub async fn remove(&self, disk: &Disk) -> Result<()> {
        let Some(directory) = &self.directory else { return self.discard(|_| true).await };
        // Without a readable marker only the folders are known that this process made itself.
        let made = match self.sealed_if_any::<ClaimMarker>(MARKER).await {
            Ok(Some(marker)) => marker.made,
            _ => directory.made(),
        };
        let failed = |e: std::io::Error| {
            let problem = format!("cannot be removed: {e}");
            StoreError::Url { url: self.name().to_owned(), problem }
        };
        directory.remove(made, disk).map_err(failed)
    }

    /// Removes the objects of some kinds, one kind after another.
    async fn discard(&self, wanted: impl Fn(ObjectKind) -> bool) -> Result<()> {
        let mut objects: Vec<(ObjectKind, String)> =
            self.known_objects().await?.into_iter().filter(|(kind, _)| wanted(*kind)).collect();
        objects.sort();
        for kind in objects.chunk_by(|(a, _), (b, _)| a == b) {
            for some in kind.chunks(REMOVALS) {
                try_join_all(some.iter().map(|(_, object)| self.delete(object))).await?;
            }
        }
        Ok(())
    }

    /// All objects of the job; the first one that is not obsdiff's is an error.
    async fn known_objects(&self) -> Result<Vec<(ObjectKind, String)>> {
        let list = || async {
            let mut names = Vec::new();
            let prefix = Some(&self.prefix).filter(|prefix| !prefix.as_ref().is_empty());
            let mut found = self.objects.list(prefix);
            while let Some(meta) = found.try_next().await? {
                let Some(name) = self.listed(&meta.location) else { continue };
                let kind = layout::kind(&name);
                names.push((kind, name));
                // The first foreign object is enough: a bucket may hold millions of them.
                if kind.is_none() {
                    break;
                }
            }
            Ok(names)
        };
        let names = self.retried("listed", "", list).await?;
        let known = |(kind, object): (Option<ObjectKind>, String)| match kind {
            Some(kind) => Ok((kind, object)),
            None => Err(StoreError::Foreign { store: self.name().to_owned(), object }),
        };
        let objects: Vec<_> = names.into_iter().map(known).collect::<Result<_>>()?;
        Ok(objects.into_iter().filter(|(kind, _)| *kind != ObjectKind::Lock).collect())
    }

    pub(super) async fn delete(&self, object: &str) -> Result<()> {
        let path = self.path(object);
        match self.retried("removed", object, || async { self.objects.delete(&path).await }).await {
            Err(StoreError::Missing { .. }) => Ok(()),
            deleted => deleted,
        }
    }
}
