//! The model of a job in an object store, which each machine copies into a folder of its own before it reads it.
//!
//! A pipeline in the cache is a folder as diffusers saves it, so that nothing that reads it knows where it came from. Its files have the
//! names and the content of the store's objects, so that machines agree on their digests.

mod cache;
mod contents;
mod download;
mod error;
mod layout;
mod removal;

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use obsdiff_engine::pipeline::{
    INDEX_FILE, TextFiles, files_of_pipeline, files_of_transformer, weight_indexes, weights_left_out,
};
use obsdiff_files::{Lock, Owner, free_bytes};
use obsdiff_proto::{ByteSize, JobSpec};
use obsdiff_store::{ModelStore, StoredFile};
use tokio::runtime::Handle;

use cache::{CachedModel, Wanted};
pub use contents::{CacheContents, CachedCopy, ModelCache};
use download::Download;
pub use error::{Result, StoredModelError};
pub use removal::ModelRemoval;

/// The configuration of a pipeline's transformer.
const CONFIG_FILE: &str = "transformer/config.json";
/// The largest configuration, vocabulary or index that a pipeline may have: what is read of such a file at most.
const MOST_TEXT_BYTES: u64 = 64 << 20;
/// How the names of such files end.
const TEXTS: [&str; 3] = [".json", ".txt", ".model"];
/// How often a process that waits for another one's download says that it is alive.
const ALIVE_EVERY: Duration = Duration::from_millis(500);

/// How much of a model is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The index and the transformer's configuration.
    Configuration,
    /// All but the tensors of weights, of which the headers are enough; text encoders `with_text`.
    Headers {
        /// Whether text encoders are among it.
        with_text: bool,
    },
    /// The transformer.
    Transformer,
    /// All but the tensors of others than the transformer.
    TransformerWeights,
    /// All but the tensors of others than the text encoders.
    TextWeights,
    /// All but the text encoders and their tokenizers.
    WithoutText,
    /// The whole pipeline, to read all of it.
    Whole,
    /// The whole pipeline, of which text encoders are only copied, whatever they are.
    Copied,
}

impl Extent {
    /// What a process of a job reads: no text encoders where its prompts come encoded.
    pub fn of(spec: &JobSpec) -> Self {
        if spec.calibration.conditioning.is_some() { Self::WithoutText } else { Self::Whole }
    }
}

/// What happens while a model is fetched.
#[derive(Debug)]
pub enum FetchEvent<'a> {
    /// Another process downloads the same model.
    Waits(&'a Owner),
    /// So many bytes are to be downloaded.
    Begins(u64),
    /// So many more are here.
    Done(u64),
    /// The work goes on.
    Alive,
    /// All are here.
    Ends,
}

/// Is called as a model is fetched, from any thread.
pub type OnFetch<'a> = dyn Fn(FetchEvent<'_>) + Sync + 'a;

/// A model in an object store. What was fetched of it stays on this machine at least until this is dropped.
#[derive(Debug)]
pub struct StoredModel {
    store: ModelStore,
    files: Vec<StoredFile>,
    cache: CachedModel,
    root: PathBuf,
}

impl StoredModel {
    /// Lists the model at a URL, which is copied to the folder `cache` as far as it is needed; `options` are as [`ModelStore::open`] takes
    /// them. Nothing is downloaded yet.
    ///
    /// # Errors
    /// When there is no such model, or it holds what no pipeline does; when the store fails, or the folder cannot be used.
    pub fn open(
        url: &str,
        options: &[(String, String)],
        cache: Option<&Path>,
        runtime: &Handle,
    ) -> Result<Self> {
        Self::of(ModelStore::open(url, options)?, cache, runtime)
    }

    /// The same of any store.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn of(store: ModelStore, cache: Option<&Path>, runtime: &Handle) -> Result<Self> {
        let url = store.name().to_owned();
        let Some(root) = cache else { return Err(StoredModelError::NoCache { url }) };
        let files = runtime.block_on(store.list())?;
        let refused = |problem: String| Err(StoredModelError::Refused { url: url.clone(), problem });
        if !files.iter().any(|file| file.name == INDEX_FILE) {
            return refused(format!(
                "holds no {INDEX_FILE}: give the prefix of a whole diffusers pipeline, of which this is a file"
            ));
        }
        let is_text = |file: &&StoredFile| TEXTS.iter().any(|end| file.name.ends_with(end));
        if let Some(file) = files.iter().filter(is_text).find(|file| file.bytes > MOST_TEXT_BYTES) {
            let (name, size, most) = (&file.name, ByteSize(file.bytes), ByteSize(MOST_TEXT_BYTES));
            return refused(format!(
                "holds {name} of {size}, but no such file of a pipeline is above {most}"
            ));
        }
        // Where a listing lacks tags, each object is asked for its own, once: all is then read as it was at that moment.
        let files = files.iter().map(|file| Ok(runtime.block_on(store.tagged(file))?));
        let files = files.collect::<Result<Vec<_>>>()?;
        let cache = CachedModel::open(root, &url)?;
        cache.note_listing(&files)?;
        Ok(Self { store, files, cache, root: root.to_owned() })
    }

    /// Its URL.
    pub fn url(&self) -> &str {
        self.store.name()
    }

    /// The folder of the cache.
    pub fn cache(&self) -> &Path {
        &self.root
    }

    /// Downloads what is needed and not here yet, and gives the folder of the pipeline. Other processes on this machine may fetch the same
    /// at the same time.
    ///
    /// # Errors
    /// When the pipeline is of no kind that can be used, or does not fit the disk; when an object is replaced meanwhile, or the store
    /// fails. What is here then is used by the next fetch.
    pub fn fetch(&self, extent: Extent, runtime: &Handle, on_fetch: &OnFetch<'_>) -> Result<PathBuf> {
        let configuration = self.wanted(&[INDEX_FILE, CONFIG_FILE], &[]);
        let mut folder = self.bring(configuration, runtime, on_fetch)?;
        let names: Vec<&str> = self.files.iter().map(|file| file.name.as_str()).collect();
        let indexes = weight_indexes(&names);
        if extent != Extent::Configuration && !indexes.is_empty() {
            let files = [&[INDEX_FILE, CONFIG_FILE], &*indexes].concat();
            folder = self.bring(self.wanted(&files, &[]), runtime, on_fetch)?;
        }
        let index = folder.join(INDEX_FILE);
        let of = |text: TextFiles| files_of_pipeline(&index, &names, text);
        // What is needed, and of which files headers are enough.
        let (files, outlined) = match extent {
            Extent::Configuration => return Ok(folder),
            Extent::Headers { with_text: true } => (of(TextFiles::Read)?, of(TextFiles::Read)?),
            Extent::Headers { with_text: false } => (of(TextFiles::None)?, of(TextFiles::None)?),
            Extent::Transformer => (files_of_transformer(&index, &names)?, Vec::new()),
            Extent::TransformerWeights => {
                let all = of(TextFiles::Read)?;
                let others = all.iter().copied().filter(|name| !name.starts_with("transformer/")).collect();
                (all, others)
            }
            Extent::TextWeights => (of(TextFiles::Read)?, of(TextFiles::None)?),
            Extent::WithoutText => (of(TextFiles::None)?, Vec::new()),
            Extent::Whole => (of(TextFiles::Read)?, Vec::new()),
            Extent::Copied => (of(TextFiles::Copied)?, Vec::new()),
        };
        self.bring(self.wanted(&files, &outlined), runtime, on_fetch)
    }

    /// The weights that its pipeline has in formats that are never read, and as variants: they are not fetched. `folder` is what
    /// [`Self::fetch`] has given.
    ///
    /// # Errors
    /// When the index of the pipeline cannot be read.
    pub fn left_out(&self, folder: &Path) -> Result<Vec<&str>> {
        let names: Vec<&str> = self.files.iter().map(|file| file.name.as_str()).collect();
        Ok(weights_left_out(&folder.join(INDEX_FILE), &names)?)
    }

    /// Those of these files that the store has; of weights among `outlined` only the headers.
    fn wanted(&self, names: &[&str], outlined: &[&str]) -> Vec<Wanted> {
        let [names, outlined] = [names, outlined].map(|of| of.iter().copied().collect::<BTreeSet<&str>>());
        let wanted = |file: &StoredFile| {
            let name = file.name.as_str();
            let headers = name.ends_with(".safetensors") && outlined.contains(name);
            names.contains(name).then(|| Wanted { file: file.clone(), headers })
        };
        self.files.iter().filter_map(wanted).collect()
    }

    /// Brings these files here, as far as they are not.
    fn bring(&self, files: Vec<Wanted>, runtime: &Handle, on_fetch: &OnFetch<'_>) -> Result<PathBuf> {
        if let Some(folder) = self.cache.pipeline(&files) {
            return Ok(folder);
        }
        let lock = runtime.block_on(self.locked(on_fetch))?;
        let (store, cache) = (&self.store, &self.cache);
        let download = Download { store, cache, exclusive: lock.is_exclusive(), on_fetch };
        let missing: Vec<Wanted> = files.iter().filter(|file| !cache.has(file)).cloned().collect();
        let left = missing.iter().map(|file| download.left(file)).fold(0, u64::saturating_add);
        let free = free_bytes(cache.folder()).map_err(|e| StoredModelError::file(cache.folder(), e))?;
        if left > free {
            return Err(StoredModelError::Space {
                url: self.url().to_owned(),
                path: self.root.clone(),
                needed: ByteSize(left),
                free: ByteSize(free),
            });
        }
        on_fetch(FetchEvent::Begins(left));
        let (headers, whole): (Vec<Wanted>, Vec<Wanted>) = missing.into_iter().partition(|file| file.headers);
        runtime.block_on(async {
            for file in &headers {
                download.header(file).await?;
            }
            download.whole(&whole).await
        })?;
        on_fetch(FetchEvent::Ends);
        cache.make_pipeline(&files)
    }

    /// Takes the lock of the model's downloads, once no other process holds it.
    async fn locked(&self, on_fetch: &OnFetch<'_>) -> Result<Lock> {
        match self.cache.lock()? {
            Ok(lock) => return Ok(lock),
            Err(owner) => on_fetch(FetchEvent::Waits(&owner)),
        }
        let path = self.cache.lock_path();
        let failed = |error| StoredModelError::file(self.cache.lock_path(), error);
        // The system wakes its thread when the other process lets go.
        let mut waiting = tokio::task::spawn_blocking(move || Lock::wait(&path));
        loop {
            match tokio::time::timeout(ALIVE_EVERY, &mut waiting).await {
                Ok(waited) => return waited.map_err(io::Error::other).and_then(|lock| lock).map_err(failed),
                Err(_) => on_fetch(FetchEvent::Alive),
            }
        }
    }
}

#[cfg(test)]
mod tests;
