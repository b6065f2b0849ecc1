//! The model of a job in an object store. It is only read.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{GetOptions, ObjectMeta, ObjectStore, ObjectStoreExt};

use super::location::{self, Located, OpenFor};
use super::{JobStore, Result, StoreError};

/// Objects below a prefix, at most: a pipeline has about thirty.
const MOST_OBJECTS: usize = 10_000;
/// Folders of a pipeline that a file lies in, at most.
const MOST_FOLDERS: usize = 8;
/// Bytes of a name between two slashes, at most: what file systems take.
const MOST_NAME_BYTES: usize = 255;
/// How the URLs of object stores start.
const SCHEMES: [&str; 8] = ["s3", "s3a", "gs", "az", "adl", "azure", "abfs", "abfss"];

/// A prefix that a model is read from. Clones are the same place.
#[derive(Clone, Debug)]
pub struct ModelStore {
    store: JobStore,
}

/// An object of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// Its path below the prefix, which is safe to be that of a file: no part of it is empty, `.` or `..`.
    pub name: String,
    /// Its bytes.
    pub bytes: u64,
    /// What the store calls this content of the object: another content has another tag. Absent where a listing does not contain it.
    pub tag: Option<String>,
    path: Path,
}

impl ModelStore {
    /// Whether a model of this path lies in an object store, and not in a folder.
    pub fn is_url(path: &str) -> bool {
        path.split_once("://").is_some_and(|(scheme, _)| SCHEMES.contains(&scheme))
    }

    /// The model at a URL: `s3://`, `gs://` or `az://` with bucket and prefix; `options` are as [`JobStore::create`] takes them.
    ///
    /// # Errors
    /// When the URL names no such store.
    pub fn open(url: &str, options: &[(String, String)]) -> Result<Self> {
        let Located { objects, prefix, .. } = location::locate(url, options, OpenFor::Use)?;
        Ok(Self { store: JobStore::at(objects, prefix, url.trim_end_matches('/')).at_start() })
    }

    /// A model in any store; `name` is what messages call it.
    pub fn over(objects: Arc<dyn ObjectStore>, name: &str) -> Self {
        Self { store: JobStore::over(objects, name) }
    }

    /// What messages call it: its URL.
    pub fn name(&self) -> &str {
        self.store.name()
    }

    /// All objects of the model, by their names. Markers of folders, which are empty, are left out.
    ///
    /// # Errors
    /// When there are too many, or one has a name that no file may have; when the store fails.
    pub async fn list(&self) -> Result<Vec<StoredFile>> {
        let store = &self.store;
        let list = || async {
            let mut found =
                store.objects.list(Some(&store.prefix).filter(|prefix| !prefix.as_ref().is_empty()));
            let mut objects = Vec::new();
            while let Some(meta) = found.try_next().await? {
                objects.push(meta);
                if objects.len() > MOST_OBJECTS {
                    break;
                }
            }
            Ok(objects)
        };
        let objects = store.retried("listed", "", list).await.map_err(|error| self.explained(error))?;
        if objects.len() > MOST_OBJECTS {
            return Err(self.refused(format!(
                "holds more than {MOST_OBJECTS} objects: give the prefix of one diffusers pipeline"
            )));
        }
        let mut files = Vec::new();
        for meta in objects {
            files.extend(self.file(meta)?);
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        self.without_folders(files)
    }

    /// Reads some bytes of an object, and calls `on_piece` as they come.
    ///
    /// # Errors
    /// When the object is no longer the one that was listed, or the store fails.
    pub async fn read(
        &self,
        file: &StoredFile,
        range: Range<u64>,
        on_piece: &(dyn Fn() + Sync),
    ) -> Result<Bytes> {
        let objects = &self.store.objects;
        let once = || async {
            let options = GetOptions::new().with_range(Some(range.clone()));
            match objects.get_opts(&file.path, options).await {
                Ok(found) if !file.is(&found.meta) => Ok(None),
                Ok(found) => {
                    let mut pieces = found.into_stream();
                    let mut bytes = BytesMut::with_capacity((range.end - range.start) as usize);
                    while let Some(piece) = pieces.try_next().await? {
                        on_piece();
                        bytes.extend_from_slice(&piece);
                    }
                    Ok(Some(bytes.freeze()))
                }
                // For an object that became shorter a store only answers that it has no such bytes.
                Err(error) => match objects.head(&file.path).await {
                    Ok(meta) if !file.is(&meta) => Ok(None),
                    _ => Err(error),
                },
            }
        };
        let read =
            self.store.retried("read", &file.name, once).await.map_err(|error| self.explained(error))?;
        let (store, object) = (self.name().to_owned(), file.name.clone());
        match read {
            Some(bytes) if bytes.len() as u64 == range.end - range.start => Ok(bytes),
            Some(_) | None => Err(StoreError::Replaced { store, object }),
        }
    }

    /// The same object with the tag of its content, where the listing lacks it.
    ///
    /// # Errors
    /// When the object is no longer the one that was listed, or the store has no tags; when the store fails.
    pub async fn tagged(&self, file: &StoredFile) -> Result<StoredFile> {
        if file.tag.is_some() {
            return Ok(file.clone());
        }
        let head = || async { self.store.objects.head(&file.path).await };
        let meta =
            self.store.retried("read", &file.name, head).await.map_err(|error| self.explained(error))?;
        let (store, object) = (self.name().to_owned(), file.name.clone());
        match tag(&meta) {
            Some(_) if meta.size != file.bytes => Err(StoreError::Replaced { store, object }),
            Some(tag) => Ok(StoredFile { tag: Some(tag), ..file.clone() }),
            None => Err(self.refused(format!(
                "holds {object} without an ETag or a version, so that a change of it would go unnoticed: copy the model to a \
                 folder, or to a store that has ETags"
            ))),
        }
    }

    /// The file of an object; none where it is the marker of the whole folder.
    fn file(&self, meta: ObjectMeta) -> Result<Option<StoredFile>> {
        let raw = meta.location.as_ref();
        let prefix = self.store.prefix.as_ref();
        let inner = if prefix.is_empty() {
            Some(raw)
        } else {
            raw.strip_prefix(prefix)
                .and_then(|rest| if rest.is_empty() { Some("") } else { rest.strip_prefix('/') })
        };
        let Some(name) = inner.map(str::to_owned) else {
            return Err(
                self.refused(format!("lists {raw}, which does not lie below it: do not trust this store"))
            );
        };
        if name.is_empty() {
            return Ok(None);
        }
        if let Some(problem) = unsafe_name(&name) {
            return Err(self.refused(format!("holds {name:?}, {problem}: move that away")));
        }
        Ok(Some(StoredFile { name, bytes: meta.size, tag: tag(&meta), path: meta.location }))
    }

    /// Leaves out the markers of folders; an object with content can be no folder at the same time.
    fn without_folders(&self, files: Vec<StoredFile>) -> Result<Vec<StoredFile>> {
        let mut kept: Vec<StoredFile> = Vec::with_capacity(files.len());
        for file in &files {
            let folder = format!("{}/", file.name);
            let next = files.partition_point(|other| other.name < folder);
            let holds = files.get(next).is_some_and(|other| other.name.starts_with(&folder));
            if holds && file.bytes > 0 {
                let problem =
                    format!("holds {}, which is both an object and a folder: move one away", file.name);
                return Err(self.refused(problem));
            }
            if kept.last().is_some_and(|last| last.name == file.name) {
                return Err(self.refused(format!("lists {} twice: do not trust this store", file.name)));
            }
            if !holds {
                kept.push(file.clone());
            }
        }
        Ok(kept)
    }

    /// Errors whose remedy is another for a model than for a job's state.
    fn explained(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Bucket { .. } => self
                .refused("is in no bucket or container that is there: make it, or name another".to_owned()),
            StoreError::Failed { source, .. } if names_no_path(&source) => {
                let problem =
                    format!("lists a name that is no path below it ({source}): move that object away");
                self.refused(problem)
            }
            other => other,
        }
    }

    fn refused(&self, problem: String) -> StoreError {
        StoreError::Url { url: self.name().to_owned(), problem }
    }
}

impl StoredFile {
    /// Whether an object is still this one.
    fn is(&self, meta: &ObjectMeta) -> bool {
        let same_tag = self.tag.as_ref().is_none_or(|own| tag(meta).is_none_or(|found| *own == found));
        same_tag && meta.size == self.bytes
    }
}

/// The tag that identifies an object's content, without the quotes that some stores write and others do not.
fn tag(meta: &ObjectMeta) -> Option<String> {
    let tag = meta.e_tag.as_deref().map(|tag| tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"'));
    tag.filter(|tag| !tag.is_empty()).or(meta.version.as_deref()).map(str::to_owned)
}

/// Whether a store's error is about the name of an object.
fn names_no_path(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::InvalidPath { .. })
}

/// Why a name below the prefix can be no file's.
fn unsafe_name(name: &str) -> Option<&'static str> {
    let parts: Vec<&str> = name.split('/').collect();
    if parts.iter().any(|part| part.is_empty() || *part == "." || *part == "..") {
        Some("which would lie in another folder")
    } else if parts.iter().any(|part| part.len() > MOST_NAME_BYTES) {
        Some("whose name is too long for a file")
    } else if name.contains(|c: char| c.is_control() || c == '\\') {
        Some("whose name has characters that no file of a pipeline has")
    } else if parts.len() > MOST_FOLDERS + 1 {
        Some("which lies in more folders than a pipeline has")
    } else {
        None
    }
}
