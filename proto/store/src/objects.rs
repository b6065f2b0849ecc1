//! Single objects: read and written whole, with retries, and JSON under a seal.

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use obsdiff_proto::{Digest, causes};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::directory::write_whole;
use super::error::{is_transient, named};
use super::layout::MARKER;
use super::{JobStore, Result, StoreError, credentials};

/// The format of the JSON objects that this release writes and reads.
const FORMAT: u32 = 1;

/// A JSON object: its content, and the digest of the content as compact JSON.
#[derive(Serialize, Deserialize)]
struct Sealed<T> {
    format: u32,
    sha256: Digest,
    content: T,
}

/// The format of a [`Sealed`], which is read before its content.
#[derive(Deserialize)]
struct SealedFormat {
    format: u32,
}

/// The outcome of putting an object that must be new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object was put.
    New,
    /// There was such an object already, which is unchanged.
    Present,
}

impl JobStore {
    /// Puts a JSON object, and replaces an earlier one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put_sealed(&self, object: &str, content: &impl Serialize) -> Result<()> {
        let payload = self.seal(object, content)?;
        self.put(object, payload.into(), PutMode::Overwrite).await.map(|_| ())
    }

    /// Puts a JSON object, unless it exists.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put_sealed_new(&self, object: &str, content: &impl Serialize) -> Result<PutOutcome> {
        let payload = self.seal(object, content)?;
        self.put(object, payload.into(), PutMode::Create).await
    }

    /// Puts an empty object, unless it exists.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put_empty_new(&self, object: &str) -> Result<PutOutcome> {
        self.put(object, PutPayload::new(), PutMode::Create).await
    }

    /// Reads a JSON object.
    ///
    /// # Errors
    /// When it is missing, damaged or of another release, or the store fails.
    pub async fn sealed<T: Serialize + DeserializeOwned>(&self, object: &str) -> Result<T> {
        self.unseal(object, &self.get(object).await?)
    }

    /// The content of a JSON object that was read.
    pub(super) fn unseal<T: Serialize + DeserializeOwned>(&self, object: &str, bytes: &[u8]) -> Result<T> {
        let unreadable = |e: serde_json::Error| self.damaged(object, &format!("it cannot be read: {e}"));
        let SealedFormat { format } = serde_json::from_slice(bytes).map_err(unreadable)?;
        if format != FORMAT {
            let (store, object) = (self.name().to_owned(), object.to_owned());
            return Err(StoreError::Format { store, object, found: format, wanted: FORMAT });
        }
        let sealed: Sealed<T> = serde_json::from_slice(bytes).map_err(unreadable)?;
        let found = Digest::of(&serde_json::to_vec(&sealed.content).map_err(unreadable)?);
        if found == sealed.sha256 {
            Ok(sealed.content)
        } else {
            Err(self.misdigested(object, found, sealed.sha256))
        }
    }

    /// Reads a JSON object, if it exists.
    ///
    /// # Errors
    /// When it is damaged or of another release, or the store fails.
    pub async fn sealed_if_any<T: Serialize + DeserializeOwned>(&self, object: &str) -> Result<Option<T>> {
        match self.sealed(object).await {
            Err(StoreError::Missing { .. }) => Ok(None),
            read => read.map(Some),
        }
    }

    pub(super) fn seal(&self, object: &str, content: &impl Serialize) -> Result<Vec<u8>> {
        let unwritable = |e: serde_json::Error| self.unwritable(object, &e);
        let sha256 = Digest::of(&serde_json::to_vec(content).map_err(unwritable)?);
        serde_json::to_vec_pretty(&Sealed { format: FORMAT, sha256, content }).map_err(unwritable)
    }

    /// Puts an object. If the store put a new object but its answer was lost, the second attempt finds it present.
    pub(super) async fn put(&self, object: &str, payload: PutPayload, mode: PutMode) -> Result<PutOutcome> {
        let path = self.path(object);
        let put = || async {
            match self.objects.put_opts(&path, payload.clone(), mode.clone().into()).await {
                Ok(_) => Ok(PutOutcome::New),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    Ok(PutOutcome::Present)
                }
                Err(error) => Err(error),
            }
        };
        self.retried("written", object, put).await
    }

    /// Puts an object as a worker does, and replaces an earlier one. While a worker stands still, or does not reach the coordinator, the
    /// job may end and its state be removed, of which the worker must leave nothing behind.
    pub(super) async fn put_as_worker(&self, object: &str, content: Bytes) -> Result<()> {
        let gone = || StoreError::Gone { store: self.name().to_owned() };
        let Some(state) = &self.path else {
            self.put(object, content.into(), PutMode::Overwrite).await?;
            return match self.size(MARKER).await {
                Err(StoreError::Missing { .. }) => self.delete(object).await.and(Err(gone())),
                found => found.map(drop),
            };
        };
        // No folder is made for it: those of a job that runs are there.
        let write = || {
            let (path, content) = (state.join(object), content.clone());
            let written = tokio::task::spawn_blocking(move || write_whole(&path, &content));
            async move { written.await?.map_err(|error| of_a_file(object, error)) }
        };
        match self.retried("written", object, write).await {
            Err(StoreError::Missing { .. }) => Err(gone()),
            written => written,
        }
    }

    /// Reads an object.
    pub(super) async fn get(&self, object: &str) -> Result<Bytes> {
        let path = self.path(object);
        self.retried("read", object, || async { self.objects.get(&path).await?.bytes().await }).await
    }

    /// Reads some bytes of an object.
    pub(super) async fn get_range(&self, object: &str, range: Range<u64>) -> Result<Bytes> {
        let path = self.path(object);
        let read = || async { self.objects.get_range(&path, range.clone()).await };
        self.retried("read", object, read).await
    }

    /// The bytes of an object.
    pub(super) async fn size(&self, object: &str) -> Result<u64> {
        let path = self.path(object);
        self.retried("read", object, || async { Ok(self.objects.head(&path).await?.size) }).await
    }

    /// The names of all objects below `folder`, in order.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn list(&self, folder: &str) -> Result<Vec<String>> {
        let path = self.path(folder);
        let list = || async { self.objects.list(Some(&path)).try_collect::<Vec<_>>().await };
        let found = self.retried("listed", folder, list).await?;
        let mut names: Vec<String> =
            found.iter().filter_map(|meta| Some(meta.location.filename()?.to_owned())).collect();
        names.sort();
        Ok(names)
    }

    pub(super) async fn retried<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        what: &'static str,
        object: &str,
        mut once: impl FnMut() -> F,
    ) -> Result<T> {
        let (tries, begun) = (AtomicU32::new(0), Instant::now());
        let counted = || {
            tries.fetch_add(1, Ordering::Relaxed);
            once()
        };
        let waits = ExponentialBuilder::default()
            .with_min_delay(self.retries.first)
            .with_max_delay(self.retries.most)
            .with_max_times(self.retries.tries.saturating_sub(1) as usize);
        let result = counted
            .retry(waits)
            .when(|error| {
                let waited = begun.elapsed() >= credentials::PATIENCE;
                is_transient(error) && !(waited && credentials::are_missing(error))
            })
            .notify(|error, wait| {
                let (object, error, wait) = (named(object), causes(error), wait.as_secs_f64());
                tracing::warn!(
                    "{}: {object} could not be {what}: {error}; it is tried again in {wait:.1} s",
                    self.name
                );
            })
            .await;
        result.map_err(|source| StoreError::of((self.name(), object), what, tries.into_inner(), source))
    }

    pub(super) fn damaged(&self, object: &str, problem: &str) -> StoreError {
        let (store, object) = (self.name().to_owned(), object.to_owned());
        StoreError::Damaged { store, object, problem: problem.to_owned() }
    }

    /// The error of a JSON object that cannot be written.
    pub fn unwritable(&self, object: &str, error: &serde_json::Error) -> StoreError {
        self.damaged(object, &format!("it cannot be written: {error}"))
    }

    pub(super) fn misdigested(&self, object: &str, found: Digest, wanted: Digest) -> StoreError {
        self.damaged(object, &format!("its content has the digest {found} instead of {wanted}"))
    }

    /// The name below the prefix of an object that a listing contains; none of the marker of the prefix itself, an empty object that
    /// consoles make for a folder.
    pub(super) fn listed(&self, location: &Path) -> Option<String> {
        let name = match location.prefix_match(&self.prefix) {
            Some(parts) => parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"),
            None => location.to_string(),
        };
        Some(name).filter(|name| !name.is_empty())
    }

    pub(super) fn path(&self, object: &str) -> Path {
        object.split('/').fold(self.prefix.clone(), |path, name| path.join(name))
    }
}

/// An error of a file, as that of the object that is in it.
pub(super) fn of_a_file(object: &str, error: io::Error) -> object_store::Error {
    let path = object.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound => object_store::Error::NotFound { path, source: error.into() },
        io::ErrorKind::PermissionDenied => {
            object_store::Error::PermissionDenied { path, source: error.into() }
        }
        _ => object_store::Error::Generic { store: "LocalFileSystem", source: error.into() },
    }
}
