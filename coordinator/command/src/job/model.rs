//! The model of a job: a folder, or a prefix of an object store, whose files are copied to this machine as far as they are needed.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use obsdiff_proto::JobError;
use obsdiff_store::{ModelStore, StoreError};
use obsdiff_worker::pruning_job::SourceFolder;
use obsdiff_worker::stored_model::{Extent, StoredModel, StoredModelError};

use super::{JobFile, defaults};
use crate::downloads::Downloads;
use crate::progress::Progress;
use crate::runtime::runtime;
use crate::{Error, Result};

impl SourceFolder for JobFile {
    fn whole(&self) -> obsdiff_engine::Result<PathBuf> {
        // Text encoders that no process of the job reads come now, to be copied.
        let extent = if Extent::of(&self.spec) == Extent::Whole { Extent::Whole } else { Extent::Copied };
        let source = PathBuf::from(&self.spec.model.path);
        let brought = self.model_folder(extent).and_then(|folder| {
            if let Some(JobStoredModel { model, downloads }) = &self.stored {
                let left_out = model.left_out(&folder).map_err(|error| self.unfetched(error))?;
                downloads.tell_left_out(model.url(), &left_out);
            }
            Ok(folder)
        });
        brought.map_err(|error| obsdiff_engine::Error::File {
            path: source,
            source: io::Error::other(error.line()),
        })
    }
}

/// The model of a job in an object store.
#[derive(Clone, Debug)]
pub(super) struct JobStoredModel {
    model: Arc<StoredModel>,
    downloads: Arc<Downloads>,
}

impl JobFile {
    /// Lists the model, where it is in an object store. What of it is needed later is shown on `progress` as it comes.
    ///
    /// # Errors
    /// When there is no such model, or the store or the cache cannot be used.
    pub fn open_model(&mut self, progress: &Progress) -> Result<()> {
        let url = &self.spec.model.path;
        if !ModelStore::is_url(url) {
            return Ok(());
        }
        let runtime = runtime()?;
        let opened = StoredModel::open(url, self.stores.pairs(), self.stores.cache(), runtime.handle());
        let model = Arc::new(opened.map_err(|error| self.unfetched(error))?);
        let downloads = Arc::new(Downloads::new(progress.clone()));
        self.stored = Some(JobStoredModel { model, downloads });
        Ok(())
    }

    /// Takes the defaults of a model in an object store, as they are taken of one in a folder when the job is loaded.
    ///
    /// # Errors
    /// When its configuration cannot be read, or does not fit the job.
    pub(crate) fn fill_model_defaults(&mut self) -> Result<()> {
        // Kept Grams decide these keys.
        if self.stored.is_none() || self.kept.is_some() {
            return Ok(());
        }
        let folder = self.model_folder(Extent::Configuration)?;
        defaults::fill(&mut self.spec, &folder, &self.merged);
        self.spec.validate().map_err(|e| self.refuse(e))
    }

    /// The folder of the model on this machine, with at least so much of it.
    ///
    /// # Errors
    /// When it cannot be downloaded.
    pub(crate) fn model_folder(&self, extent: Extent) -> Result<PathBuf> {
        let Some(JobStoredModel { model, downloads }) = &self.stored else {
            return Ok(PathBuf::from(&self.spec.model.path));
        };
        let runtime = runtime()?;
        let fetched = model.fetch(extent, runtime.handle(), &|event| downloads.show(event));
        fetched.map_err(|error| self.unfetched(error))
    }

    /// The folder of this machine that the model is copied to, where it is in an object store.
    pub(crate) fn model_cache(&self) -> Option<&Path> {
        self.stored.as_ref().map(|stored| stored.model.cache())
    }

    /// The error of a model that cannot be brought here, by its key where that has to change.
    pub(crate) fn unfetched(&self, error: StoredModelError) -> Error {
        match error {
            StoredModelError::Store(StoreError::Url { url, problem })
            | StoredModelError::Refused { url, problem } => {
                self.refuse(JobError::new("model.path", format!("is {url}, which {problem}")))
            }
            other => other.into(),
        }
    }
}
