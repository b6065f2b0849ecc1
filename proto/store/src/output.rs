//! The output of a job in an object store.
//!
//! | object | content |
//! |---|---|
//! | `obsdiff-output.json` | the marker: what lies here is being written by an obsdiff job, with the names of its files. Put first, removed last |
//! | `model_index.json` | makes the other objects a pipeline. Put after all of them |
//! | `obsdiff-probe.json` | put and removed before any work, to see whether that is permitted |
//! | others | files of a diffusers pipeline |
//!
//! Objects are overwritten or removed only where the marker of the same job names them.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, WriteMultipart};
use obsdiff_proto::{Digest, JobSpec};
use serde::{Deserialize, Serialize};

use super::location::{self, Located, OpenFor};
use super::objects::PutOutcome;
use super::probe::PROBE;
use super::{JobStore, Result, StoreError};

/// Marks a prefix as one that is being written.
const MARKER: &str = "obsdiff-output.json";
/// What makes objects a pipeline: without it they are none.
const INDEX: &str = "model_index.json";

/// Bytes of a part of a large object: few enough to hold some of them, and at least what every store takes.
const PART_BYTES: u64 = 16 << 20;
/// Parts of an object, at most: stores take 10,000, and a shrunk file may be a little longer than expected.
const MOST_PARTS: u64 = 9_000;
/// Parts that are on their way at a time.
const PARTS_AT_A_TIME: usize = 4;

/// Where a job writes its output. Clones are the same place.
#[derive(Clone, Debug)]
pub struct OutputStore {
    store: JobStore,
    /// The same objects, through a client that repeats requests by itself: the parts of an object cannot be put again from outside.
    uploads: Arc<dyn ObjectStore>,
}

/// What a prefix for an output holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputState {
    /// Nothing.
    Empty,
    /// What the same job has begun to write.
    Begun,
    /// Something without a marker: a complete output, or objects of others, of which this is the first.
    Unmarked(String),
}

/// The marker's content.
#[derive(Debug, Serialize, Deserialize)]
struct OutputMarker {
    /// An explanation for people who find it.
    holds: String,
    /// The digest of the job's specification.
    job: Digest,
    /// The files that the output will have.
    files: BTreeSet<String>,
}

/// An object that is written as a stream.
#[derive(Debug)]
pub struct Upload<'a> {
    output: &'a OutputStore,
    file: String,
    part: usize,
    /// The start of the object, until it is longer than a part.
    start: Vec<u8>,
    parts: Option<WriteMultipart>,
}

impl OutputStore {
    /// Whether an output of this path goes into an object store, and not into a directory.
    pub fn is_url(path: &str) -> bool {
        path.contains("://")
    }

    /// The place that a URL names: `s3://`, `gs://` or `az://` with bucket and prefix; `options` are as [`JobStore::create`] takes them.
    ///
    /// # Errors
    /// When the URL names no such store, or none below a bucket.
    pub fn open(url: &str, options: &[(String, String)]) -> Result<Self> {
        let refused = |problem: &str| StoreError::Url { url: url.to_owned(), problem: problem.to_owned() };
        if JobStore::directory(url)?.is_some() {
            return Err(refused(
                "is no object store: give a directory without file://, or s3://BUCKET/PREFIX",
            ));
        }
        let Located { objects, prefix, .. } = location::locate(url, options, OpenFor::Use)?;
        if prefix.as_ref().is_empty() {
            return Err(refused(
                "names a whole bucket: give the output a prefix in it, such as s3://BUCKET/PREFIX",
            ));
        }
        let uploads = location::locate(url, options, OpenFor::Upload)?.objects;
        Ok(Self { store: JobStore::at(objects, prefix, url.trim_end_matches('/')), uploads })
    }

    /// An output in any store; `name` is what messages call it.
    pub fn over(objects: Arc<dyn ObjectStore>, name: &str) -> Self {
        Self { uploads: objects.clone(), store: JobStore::over(objects, name) }
    }

    /// The same place for a process that starts, which waits longer for a store that is away.
    #[must_use]
    pub fn at_start(&self) -> Self {
        Self { store: self.store.at_start(), uploads: self.uploads.clone() }
    }

    /// What messages call it: its URL.
    pub fn name(&self) -> &str {
        self.store.name()
    }

    /// What the prefix holds, for a job of this specification.
    ///
    /// # Errors
    /// When another job writes here, or the marker does not name an object that is here; when the store fails.
    pub async fn state(&self, spec: &JobSpec) -> Result<OutputState> {
        let marker = self.store.sealed_if_any::<OutputMarker>(MARKER).await?;
        let Some(marker) = marker else {
            return Ok(self.first(|_| true).await?.map_or(OutputState::Empty, OutputState::Unmarked));
        };
        if marker.job != self.digest_of(spec)? {
            let problem = format!(
                "holds what another job has begun to write, as {MARKER} there says: choose another output.path, or remove \
                 these objects if that job is given up"
            );
            return Err(self.refused(problem));
        }
        self.refuse_foreign(&marker.files).await?;
        Ok(OutputState::Begun)
    }

    /// Marks the prefix as one that a job of this specification writes, with these files. Objects that an earlier release of obsdiff has
    /// begun to write for the job and that are not among these are removed.
    ///
    /// # Errors
    /// When it holds anything else, or the store fails.
    pub async fn begin(&self, spec: &JobSpec, files: &[String]) -> Result<()> {
        let files: BTreeSet<String> = files.iter().cloned().collect();
        let marker = OutputMarker {
            holds: "a pipeline that obsdiff has not finished writing".to_owned(),
            job: self.digest_of(spec)?,
            files,
        };
        if self.store.put_sealed_new(MARKER, &marker).await? == PutOutcome::New {
            if let Some(object) = self.first(|_| true).await? {
                self.store.delete(MARKER).await?;
                return Err(self.foreign(&object));
            }
            return Ok(());
        }
        self.state(spec).await?;
        let earlier: OutputMarker = self.store.sealed(MARKER).await?;
        for file in earlier.files.difference(&marker.files) {
            self.store.delete(file).await?;
        }
        if earlier.files != marker.files {
            self.store.put_sealed(MARKER, &marker).await?;
        }
        Ok(())
    }

    /// Whether the output is complete.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn is_complete(&self) -> Result<bool> {
        match self.store.size(INDEX).await {
            Ok(_) => Ok(true),
            Err(StoreError::Missing { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the marker of a complete output.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn finish(&self) -> Result<()> {
        self.store.delete(MARKER).await
    }

    /// Removes what a job of this specification has begun to write, the marker last. A complete output stays.
    ///
    /// # Errors
    /// When the store fails, or the prefix holds anything else.
    pub async fn give_up(&self, spec: &JobSpec) -> Result<()> {
        if self.state(spec).await? != OutputState::Begun || self.is_complete().await? {
            return Ok(());
        }
        let marker: OutputMarker = self.store.sealed(MARKER).await?;
        for file in &marker.files {
            self.store.delete(file).await?;
        }
        self.finish().await
    }

    /// Puts a small object, in place of an earlier one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put(&self, file: &str, content: Vec<u8>) -> Result<()> {
        self.store.put(file, Bytes::from(content).into(), PutMode::Overwrite).await.map(drop)
    }

    /// Reads an object; none where there is no such one.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn get(&self, file: &str) -> Result<Option<Bytes>> {
        match self.store.get(file).await {
            Err(StoreError::Missing { .. }) => Ok(None),
            read => read.map(Some),
        }
    }

    /// The objects of a folder, by their names in it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn list(&self, folder: &str) -> Result<Vec<String>> {
        self.store.list(folder).await
    }

    /// Bytes of all objects of the output.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn bytes(&self) -> Result<u64> {
        let store = &self.store;
        let bytes = || async {
            let found = store.objects.list(Some(&store.prefix).filter(|prefix| !prefix.as_ref().is_empty()));
            found.try_fold(0, |bytes, meta| async move { Ok(bytes + meta.size) }).await
        };
        store.retried("listed", "", bytes).await
    }

    /// Reads an object piece by piece, and gives each to `take`; `take` gets what follows where a request is repeated.
    ///
    /// # Errors
    /// Those of `take`; when the object is missing, or the store fails.
    pub async fn download<E: From<StoreError>>(
        &self,
        file: &str,
        take: &mut (dyn FnMut(Bytes) -> Result<(), E> + Send),
    ) -> Result<(), E> {
        let bytes = self.store.size(file).await?;
        let mut at = 0;
        while at < bytes {
            let end = bytes.min(at + PART_BYTES);
            take(self.store.get_range(file, at..end).await?)?;
            at = end;
        }
        Ok(())
    }

    /// Begins an object of about so many bytes.
    pub fn upload(&self, file: &str, bytes: u64) -> Upload<'_> {
        let part = PART_BYTES.max(bytes.div_ceil(MOST_PARTS)) as usize;
        Upload { output: self, file: file.to_owned(), part, start: Vec::new(), parts: None }
    }

    /// The first object whose name is as wanted, except the marker and the objects by which processes test their rights.
    async fn first(&self, wanted: impl Fn(&str) -> bool) -> Result<Option<String>> {
        let store = &self.store;
        let first = || async {
            let mut found =
                store.objects.list(Some(&store.prefix).filter(|prefix| !prefix.as_ref().is_empty()));
            while let Some(meta) = found.try_next().await? {
                let Some(name) = store.listed(&meta.location) else { continue };
                if ![MARKER, PROBE].contains(&&*name) && wanted(&name) {
                    return Ok(Some(name));
                }
            }
            Ok(None)
        };
        store.retried("listed", "", first).await
    }

    /// Refuses a prefix that holds another object than these files.
    async fn refuse_foreign(&self, files: &BTreeSet<String>) -> Result<()> {
        let paths: BTreeSet<String> = files.iter().map(|file| self.relative(file)).collect();
        match self.first(|name| !paths.contains(name)).await? {
            Some(object) => Err(self.foreign(&object)),
            None => Ok(()),
        }
    }

    /// A file's name as stores list it.
    fn relative(&self, file: &str) -> String {
        file.split('/').collect::<object_store::path::Path>().to_string()
    }

    /// The objects of the prefix.
    pub(super) fn objects(&self) -> &JobStore {
        &self.store
    }

    pub(super) fn foreign(&self, object: &str) -> StoreError {
        self.refused(format!(
            "holds {object}, which the job did not write: choose another output.path, or move that away"
        ))
    }

    fn refused(&self, problem: String) -> StoreError {
        StoreError::Url { url: self.name().to_owned(), problem }
    }

    fn digest_of(&self, spec: &JobSpec) -> Result<Digest> {
        let json = serde_json::to_vec(spec).map_err(|e| self.store.unwritable(MARKER, &e))?;
        Ok(Digest::of(&json))
    }

    fn failed(&self, file: &str, source: object_store::Error) -> StoreError {
        StoreError::of((self.name(), file), "written", location::UPLOAD_TRIES, source)
    }
}

impl Upload<'_> {
    /// Takes the next bytes. Waits while too many parts are on their way.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        for piece in bytes.chunks(self.part) {
            self.write_piece(piece).await?;
        }
        Ok(())
    }

    /// Takes at most as many bytes as a part has.
    async fn write_piece(&mut self, piece: &[u8]) -> Result<()> {
        let failed = |e| self.output.failed(&self.file, e);
        if let Some(parts) = &mut self.parts {
            parts.wait_for_capacity(PARTS_AT_A_TIME).await.map_err(failed)?;
            parts.write(piece);
            return Ok(());
        }
        self.start.extend_from_slice(piece);
        if self.start.len() > self.part {
            let path = self.output.store.path(&self.file);
            let upload = self.output.uploads.put_multipart(&path).await.map_err(failed)?;
            let mut parts = WriteMultipart::new_with_chunk_size(upload, self.part);
            parts.write(&std::mem::take(&mut self.start));
            self.parts = Some(parts);
        }
        Ok(())
    }

    /// Makes the object appear.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn finish(self) -> Result<()> {
        match self.parts {
            Some(parts) => match parts.finish().await {
                Ok(_) => Ok(()),
                Err(error) => Err(self.output.failed(&self.file, error)),
            },
            None => self.output.put(&self.file, self.start).await,
        }
    }

    /// Removes the parts that were put: the object does not appear.
    pub async fn abort(self) {
        if let Some(parts) = self.parts
            && let Err(error) = parts.abort().await
        {
            tracing::warn!(store = self.output.name(), object = self.file, %error, "parts of an object are left");
        }
    }
}
