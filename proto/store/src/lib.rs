//! The store of a job, for everything that must outlive its processes: a directory, S3, Google Cloud Storage or Azure, through `object_store`.
//!
//! The objects of a job lie below one prefix:
//!
//! | object | content |
//! |---|---|
//! | `obsdiff.json` | the marker: what lies here is the state of an obsdiff job. Put first, removed last |
//! | `obsdiff.lock` | of a directory: the process that runs the job |
//! | `job.json` | what decides the result: specification, digests of files, prompts, inventory and plan. Written once |
//! | `prompts.json` | the prompts themselves |
//! | `lives/00000000` | one for each coordinator that ran the job |
//! | `conditioning/SHA256.safetensors` | the conditioning of some prompts, named by the digest of everything that decides it |
//! | `exponents/00000000.json` | the exponents as the coordinator of this life last knew them |
//! | `hardware/00000000.json` | the kind of hardware of the job's workers, as that coordinator found it |
//! | `parts/SHA256.safetensors` | pruned weights of a part, named by their content |
//! | `sums/SHA256.safetensors` | a Gram of the open package as far as one worker has summed it, named by its content |
//! | `sums/SHA256.json` | which Grams one worker's sums consist of, and of which shards. Put after them |
//! | `packages/00000.json` | a package's manifest: the parts that count. Put last |
//!
//! Every object is put whole or not at all. JSON objects and conditionings carry the digest of their content, and manifests carry those of
//! their parts. A missing, truncated or damaged object is therefore noticed when it is read, and named.
//!
//! A store that holds anything else is refused, and only objects of these names are removed.

mod claim;
mod conditioning;
mod credentials;
mod directory;
mod error;
mod grams;
pub mod layout;
mod location;
mod manifest;
mod model;
mod objects;
mod output;
mod part;
mod part_figures;
mod plaintext;
mod probe;
mod record;
mod sums;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;

use directory::Directory;
use location::Located;

pub use conditioning::conditioning_object;
pub use error::{Result, StoreError};
pub use grams::{GramReceipt, GramStore};
pub use manifest::{ManifestRecord, manifest_object, manifests_in};
pub use model::{ModelStore, StoredFile};
pub use objects::PutOutcome;
pub use output::{OutputState, OutputStore, Upload};
pub use part::PartReceipt;
pub use part_figures::LinearFigures;
pub use record::{JobRecord, Prompts};
pub use sums::{SavedGram, SumsReceipt, SumsRecord};

/// A job's objects. Clones are the same store.
#[derive(Clone, Debug)]
pub struct JobStore {
    objects: Arc<dyn ObjectStore>,
    prefix: Path,
    name: Arc<str>,
    retries: Retries,
    /// The directory that this process runs the job in.
    directory: Option<Arc<Directory>>,
    /// Where the directory of the job's state is, if the store is one.
    path: Option<PathBuf>,
}

/// How often a store that fails is asked again. Waits double from the first to the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retries {
    /// How often anything is tried; at least once.
    pub tries: u32,
    /// The first wait.
    pub first: Duration,
    /// The longest wait.
    pub most: Duration,
}

impl Retries {
    /// At the start of a process: about two minutes of waits.
    pub const START: Self =
        Self { tries: 28, first: Duration::from_millis(200), most: Duration::from_secs(5) };
}

impl Default for Retries {
    fn default() -> Self {
        Self { tries: 5, first: Duration::from_millis(200), most: Duration::from_secs(5) }
    }
}

impl JobStore {
    /// The store of a new or an earlier job, for its coordinator: a directory is made where there is none, and locked. `url` is a
    /// directory's path, or `s3://`, `gs://` or `az://` with bucket and prefix; `options` are settings by the names of the usual
    /// environment variables, such as `AWS_REGION` (others are passed over).
    ///
    /// # Errors
    /// When the URL names no store; when the directory holds anything that is not obsdiff's, is in use, or cannot be made.
    pub fn create(url: &str, options: &[(String, String)]) -> Result<Self> {
        let Located { objects, prefix, directory, path } =
            location::locate(url, options, location::OpenFor::Run)?;
        Ok(Self { directory: directory.map(Arc::new), path, ..Self::at(objects, prefix, url) })
    }

    /// The directory that a URL names; none where it is a store elsewhere.
    ///
    /// # Errors
    /// When the URL is empty or names no directory.
    pub fn directory(url: &str) -> Result<Option<PathBuf>> {
        location::directory_of(url)
    }

    /// Refuses a directory that holds anything that is not obsdiff's; nothing is made or changed.
    ///
    /// # Errors
    /// As [`JobStore::create`] has.
    pub fn check(url: &str) -> Result<()> {
        match location::directory_of(url)? {
            Some(path) if path.exists() => directory::check(&path, url),
            _ => Ok(()),
        }
    }

    /// The store of a job that a coordinator runs, for a worker.
    ///
    /// # Errors
    /// When the URL names no store, or a directory that this machine does not have.
    pub fn open(url: &str, options: &[(String, String)]) -> Result<Self> {
        let Located { objects, prefix, path, .. } = location::locate(url, options, location::OpenFor::Use)?;
        Ok(Self { path, ..Self::at(objects, prefix, url) })
    }

    /// A store that ends with the process.
    pub fn memory() -> Self {
        Self::over(Arc::new(InMemory::new()), "memory")
    }

    /// A job's objects in any store; `name` is what messages call it.
    pub fn over(objects: Arc<dyn ObjectStore>, name: &str) -> Self {
        Self::at(objects, Path::default(), name)
    }

    /// The same store for a process that starts. A store that is reached over a network is tried for longer. A directory is not: its
    /// errors come from this machine, and waiting does not help.
    #[must_use]
    pub fn at_start(&self) -> Self {
        let network = self.name.contains("://") && !self.name.starts_with("file://");
        let retries = if network { Retries::START } else { self.retries };
        self.clone().with_retries(retries)
    }

    /// The same store with other patience.
    pub fn with_retries(self, retries: Retries) -> Self {
        Self { retries, ..self }
    }

    /// What messages call it: its URL.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn at(objects: Arc<dyn ObjectStore>, prefix: Path, name: &str) -> Self {
        let (name, retries) = (name.into(), Retries::default());
        Self { objects, prefix, name, retries, directory: None, path: None }
    }
}
