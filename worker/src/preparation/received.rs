//! A job received from a coordinator. The model on this machine must be the coordinator's; the prompts come from the job's store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use obsdiff_engine::checkpoint::Weights;
use obsdiff_proto::InputDigest;
use obsdiff_proto::session::Briefing;
use obsdiff_store::{JobRecord, JobStore, Prompts};
use tokio::runtime::Handle;

use super::{JobModel, PreparationError, Result};
use crate::conditioning::ConditioningObjects;
use crate::grams::{GramIndex, JobGrams};

/// A job received from a coordinator, with its model on this machine.
pub struct ReceivedJob {
    /// The model on this machine.
    pub model: Arc<JobModel>,
    /// Its transformer's weights, not read yet.
    pub weights: Arc<Weights>,
    /// Digests of its files, by their paths in its folder.
    pub model_files: Vec<InputDigest>,
    /// The record of the job in its store.
    pub record: JobRecord,
    /// The job's prompts.
    pub prompts: Prompts,
    /// What the kept Grams are of that the job reads, where it does not calibrate.
    pub kept: Option<Arc<GramIndex>>,
}

impl ReceivedJob {
    /// Opens the model, and reads the prompts of the job's store and what its kept Grams are of. The model is in a `folder` of this machine.
    /// `settings` are those of object stores. `on_read` is called repeatedly while files are read.
    ///
    /// # Errors
    /// When the model cannot be used or is not the coordinator's, naming what differs; when the store fails or is another job's.
    pub fn open(
        briefing: &Briefing,
        (store, settings): (&JobStore, &[(String, String)]),
        runtime: &Handle,
        folder: &Path,
        on_read: &(dyn Fn() + Sync),
    ) -> Result<Self> {
        let refused = |path: &Path, problem: &str| PreparationError::Content {
            path: path.to_owned(),
            problem: problem.to_owned(),
        };
        let store = store.at_start();
        let record = runtime.block_on(store.job())?;
        let prompts = runtime.block_on(store.prompts(&record))?;
        let spec = &briefing.spec;
        // The coordinator has put the encoded prompts of the file into the store.
        let text_tokens = match &spec.calibration.conditioning {
            Some(_) => {
                let objects = ConditioningObjects::of_job(&record, &prompts)
                    .map_err(|e| PreparationError::Argument(e.to_string()))?;
                Some(objects.text_tokens(&store, runtime)?)
            }
            None => None,
        };
        let model = JobModel::open(spec, folder, text_tokens)?;
        let weights = Arc::new(model.pipeline.transformer_weights()?);
        let root = model.pipeline.path();
        let model_files = model.files.digests(root, on_read)?;
        check_same_files(root, &model_files, &briefing.inputs)?;
        if model.inventory != briefing.inventory {
            return Err(refused(
                root,
                "is described differently by the coordinator: use the same release of obsdiff",
            ));
        }
        // Prompt i has id i, which decides its noise. Held-out prompts follow the calibration prompts, so their number must be exact.
        let calibrating = briefing.spec.calibration.prompt_count() as usize;
        if record.spec != briefing.spec || prompts.calibration.len() != calibrating {
            return Err(refused(
                &PathBuf::from(&briefing.store),
                "holds the prompts of another job than the coordinator's",
            ));
        }
        let kept = JobGrams::index(spec, settings, runtime)?;
        Ok(Self { model: Arc::new(model), weights, model_files, record, prompts, kept })
    }

    /// Digests of all files that decide the result.
    pub fn digests(&self) -> Vec<InputDigest> {
        self.model_files.iter().chain(&self.record.prompt_files).cloned().collect()
    }
}

/// Checks that the model here is read from exactly the same files as the coordinator's.
fn check_same_files(root: &Path, here: &[InputDigest], theirs: &[InputDigest]) -> Result<()> {
    let refuse = |path: &str, problem: &str| {
        Err(PreparationError::Content {
            path: root.join(path),
            problem: format!("{problem}: give both the same model"),
        })
    };
    let by_path = |files: &[InputDigest]| -> BTreeMap<String, String> {
        files.iter().map(|file| (file.path.clone(), file.sha256.clone())).collect()
    };
    let (here, theirs) = (by_path(here), by_path(theirs));
    for (path, sha256) in &here {
        match theirs.get(path) {
            Some(said) if said == sha256 => {}
            Some(_) => return refuse(path, "differs from the coordinator's"),
            None => return refuse(path, "is read here, but not by the coordinator"),
        }
    }
    match theirs.keys().find(|path| !here.contains_key(*path)) {
        Some(path) => refuse(path, "is read by the coordinator, but not here"),
        None => Ok(()),
    }
}
