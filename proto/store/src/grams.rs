//! Grams that a job keeps, so that others can solve by them: a folder or prefix of its own.
//!
//! | object | content |
//! |---|---|
//! | `obsdiff-grams.json` | the marker: what lies here are the Grams of an obsdiff job. Put first |
//! | `grams/SHA256.safetensors` | the Gram of a site, named by its content |
//! | `grams.json` | which Gram is which site's, and all that decided them. Put last |
//!
//! Without `grams.json` they are those of a job that is not done.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path as FilePath;

use bytes::Bytes;
use futures_util::TryStreamExt;
use object_store::PutMode;
use obsdiff_files::Disk;
use obsdiff_proto::{Digest, JobSpec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::layout::{GRAMS, GRAMS_INDEX, GRAMS_MARKER, is_file_of_grams, is_of_grams};
use super::location::{self, Located, OpenFor};
use super::{JobStore, Result, StoreError};

/// Where Grams are kept. Clones are the same place.
#[derive(Clone, Debug)]
pub struct GramStore(JobStore);

/// Finds a kept Gram again, and knows whether it is the right one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GramReceipt {
    /// The digest of its object.
    pub sha256: Digest,
    /// The bytes of its object.
    pub bytes: u64,
}

impl GramReceipt {
    /// The name of its object.
    pub fn object(&self) -> String {
        object(self.sha256)
    }
}

fn object(sha256: Digest) -> String {
    format!("{GRAMS}/{sha256}.safetensors")
}

/// The marker's content.
#[derive(Debug, Serialize, Deserialize)]
struct GramsMarker {
    /// For people who find it.
    holds: String,
    /// The digest of the job's specification.
    job: Digest,
}

impl GramStore {
    /// The place of a job that keeps Grams: a directory is made where there is none. `url` and `options` are as
    /// [`JobStore::create`] takes them.
    ///
    /// # Errors
    /// When the URL names no store, or the directory cannot be made.
    pub fn create(url: &str, options: &[(String, String)]) -> Result<Self> {
        let Located { objects, prefix, .. } = location::locate(url, options, OpenFor::Keep)?;
        Ok(Self(JobStore::at(objects, prefix, url)))
    }

    /// The place of Grams that are kept already.
    ///
    /// # Errors
    /// When the URL names no store, or a directory that this machine does not have.
    pub fn open(url: &str, options: &[(String, String)]) -> Result<Self> {
        if let Some(path) = JobStore::directory(url)?
            && !path.is_dir()
        {
            let problem =
                "is no directory of this machine: give the output.grams of a job that is done".to_owned();
            return Err(StoreError::Url { url: url.to_owned(), problem });
        }
        let Located { objects, prefix, .. } = location::locate(url, options, OpenFor::Use)?;
        Ok(Self(JobStore::at(objects, prefix, url)))
    }

    /// Refuses a directory that holds anything but kept Grams; nothing is made or changed.
    ///
    /// # Errors
    /// When it does, or cannot be read.
    pub fn check(url: &str) -> Result<()> {
        match JobStore::directory(url)? {
            Some(path) if path.exists() => check_directory(&path, url),
            _ => Ok(()),
        }
    }

    /// What messages call it: its URL.
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// The name of the index, as messages give it.
    pub fn index_name(&self) -> String {
        format!("{}/{GRAMS_INDEX}", self.name().trim_end_matches('/'))
    }

    /// Marks an empty place as that of a job of this specification. `resumed` says whether that job was begun before, so that what it
    /// has put here is its own.
    ///
    /// # Errors
    /// When it holds anything else, another job's Grams or those of a finished one, or the store fails.
    pub async fn claim(&self, spec: &JobSpec, resumed: bool) -> Result<()> {
        let refused = |problem: &str| {
            Err(StoreError::Url { url: self.name().to_owned(), problem: format!("{problem}: {ELSEWHERE}") })
        };
        let objects = self.objects().await?;
        let json = serde_json::to_vec(spec).map_err(|e| self.0.unwritable(GRAMS_MARKER, &e))?;
        let marker = GramsMarker {
            holds: "the Grams that an obsdiff job keeps: obsdiff solve and obsdiff sweep go by them"
                .to_owned(),
            job: Digest::of(&json),
        };
        if !objects.contains(GRAMS_MARKER) {
            if let Some(object) = objects.first() {
                return refused(&format!(
                    "holds {object}, but no {GRAMS_MARKER} that marks it as a job's Grams"
                ));
            }
            self.0.put_sealed_new(GRAMS_MARKER, &marker).await?;
        }
        let found: GramsMarker = self.0.sealed(GRAMS_MARKER).await?;
        if found.job != marker.job {
            return refused("holds the Grams of another job");
        }
        if objects.contains(GRAMS_INDEX) && !resumed {
            return refused("holds Grams already, which obsdiff solve can use");
        }
        Ok(())
    }

    /// Keeps a Gram, a safetensors file. The same content has the same name, and is not written again.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put_gram(&self, content: Vec<u8>) -> Result<GramReceipt> {
        let bytes = content.len() as u64;
        let content = Bytes::from(content);
        let sha256 = self.0.digest(&content).await?;
        let object = object(sha256);
        match self.0.size(&object).await {
            Ok(found) if found == bytes => {}
            Ok(_) | Err(StoreError::Missing { .. }) => {
                self.0.put(&object, content.into(), PutMode::Overwrite).await?;
            }
            Err(error) => return Err(error),
        }
        Ok(GramReceipt { sha256, bytes })
    }

    /// Reads a Gram, as it was put.
    ///
    /// # Errors
    /// When its object is missing, truncated or damaged, or the store fails.
    pub async fn gram(&self, receipt: &GramReceipt) -> Result<Bytes> {
        let object = receipt.object();
        let content = match self.0.get(&object).await {
            Err(StoreError::Missing { .. }) => {
                return Err(self.0.damaged(&object, "it is missing"));
            }
            content => content?,
        };
        let found = content.len() as u64;
        if found != receipt.bytes {
            let (store, wanted) = (self.name().to_owned(), receipt.bytes);
            return Err(StoreError::Size { store, object, found, wanted });
        }
        let found = self.0.digest(&content).await?;
        if found == receipt.sha256 {
            Ok(content)
        } else {
            Err(self.0.misdigested(&object, found, receipt.sha256))
        }
    }

    /// Puts the index, and removes Grams that it does not name: those of work that was done again.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn put_index(&self, index: &impl Serialize, named: &[GramReceipt]) -> Result<()> {
        self.0.put_sealed(GRAMS_INDEX, index).await?;
        let named: BTreeSet<String> = named.iter().map(GramReceipt::object).collect();
        for object in self.objects().await? {
            if object.starts_with(GRAMS) && object.contains('/') && !named.contains(&object) {
                self.0.delete(&object).await?;
            }
        }
        Ok(())
    }

    /// Reads the index.
    ///
    /// # Errors
    /// When there is none, as where the job that keeps Grams here is not done; when it is damaged, or the store fails.
    pub async fn index<T: Serialize + DeserializeOwned>(&self) -> Result<T> {
        let index = self.0.at_start().sealed_if_any(GRAMS_INDEX).await?;
        index.ok_or_else(|| {
            let problem = format!(
                "holds no {GRAMS_INDEX}: give the output.grams of a job that is done (obsdiff run JOB --set output.grams=DIR)"
            );
            StoreError::Url { url: self.name().to_owned(), problem }
        })
    }

    /// Removes the Grams of a job that has not got far enough to keep any: the marker, and the directory where nothing else is in it.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn remove(&self, disk: &Disk) -> Result<()> {
        for object in self.objects().await? {
            self.0.delete(&object).await?;
        }
        if let Some(path) = JobStore::directory(self.name())? {
            // What is not empty is not only obsdiff's.
            let _ = disk.remove_folder(&path.join(GRAMS));
            let _ = disk.remove_folder(&path);
        }
        Ok(())
    }

    /// The names of all objects; one that is not of kept Grams is an error.
    async fn objects(&self) -> Result<BTreeSet<String>> {
        let store = &self.0;
        let list = || async {
            let prefix = Some(&store.prefix).filter(|prefix| !prefix.as_ref().is_empty());
            store.objects.list(prefix).try_collect::<Vec<_>>().await
        };
        let found = store.retried("listed", "", list).await?;
        let names: BTreeSet<String> = found.iter().filter_map(|meta| store.listed(&meta.location)).collect();
        match names.iter().find(|name| !is_of_grams(name)) {
            Some(object) => Err(foreign(self.name(), object)),
            None => Ok(names),
        }
    }
}

const ELSEWHERE: &str = "set output.grams to a folder of its own, or move that away";

fn foreign(url: &str, object: &str) -> StoreError {
    let problem = format!("holds {object}, which obsdiff did not write: {ELSEWHERE}");
    StoreError::Url { url: url.to_owned(), problem }
}

/// Refuses a directory that holds anything but kept Grams.
fn check_directory(path: &FilePath, url: &str) -> Result<()> {
    let unreadable =
        |e: std::io::Error| StoreError::Url { url: url.to_owned(), problem: format!("cannot be read: {e}") };
    if !path.is_dir() {
        return Err(StoreError::Url { url: url.to_owned(), problem: "is no directory".to_owned() });
    }
    for (folder, inside) in [(path.to_owned(), ""), (path.join(GRAMS), "grams/")] {
        if !folder.exists() {
            continue;
        }
        for entry in fs::read_dir(&folder).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let name = format!("{inside}{}", entry.file_name().to_string_lossy());
            let kind = entry.file_type().map_err(unreadable)?;
            let known = if kind.is_dir() { name == GRAMS } else { kind.is_file() && is_file_of_grams(&name) };
            if !known {
                return Err(foreign(url, &name));
            }
        }
    }
    Ok(())
}
