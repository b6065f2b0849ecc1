//! What a job has done so far: its store, begun or found again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use obsdiff_core::{Job as CoreJob, Options};
use obsdiff_engine::export::{PruningRecord, RECORD_FILE};
use obsdiff_proto::message::Exponents;
use obsdiff_proto::{Accumulate, Digest, JobSpec};
use obsdiff_worker::device::StoreShelf;
use obsdiff_worker::store::{JobRecord, JobStore, Opened, Prompts, StoreError};
use serde::Serialize;
use tokio::runtime::Runtime;

use super::Inputs;
use crate::job::Job;
use crate::service::StoreRecords;
use crate::{Error, Result};

/// The store of a job that this process coordinates.
pub struct State {
    store: JobStore,
    runtime: Runtime,
    /// The directory, where it is one.
    folder: Option<PathBuf>,
    /// How far the job is.
    pub job: CoreJob,
    /// Whether an earlier coordinator began it.
    pub resumed: bool,
}

impl State {
    /// Begins a job, or finds an earlier run of the same one. The store is at `output.state`, or beside the output.
    ///
    /// # Errors
    /// When it holds another job, naming what differs, or cannot be read or written.
    pub fn open(job: &Job, inputs: &Inputs) -> Result<Self> {
        let _span = tracing::info_span!("store").entered();
        let runtime = crate::service::runtime()?;
        let url = location(job);
        let store = JobStore::create(&url, job.stores().pairs())?;
        let options = options(&job.spec);
        let prompts = Prompts {
            calibration: inputs.prompts.calibration.clone(),
            held_out: inputs.prompts.held_out.clone(),
        };
        let record = JobRecord {
            release: env!("CARGO_PKG_VERSION").to_owned(),
            spec: job.spec.clone(),
            inputs: inputs.digests.clone(),
            prompts: digest(&prompts)?,
            inventory: digest(&inputs.described.inventory)?,
            plan: digest(&inputs.plan)?,
        };
        let opened = runtime.block_on(store.begin(&record, &prompts))?;
        let life = runtime.block_on(store.raise_life())?;
        let committed = runtime.block_on(store.committed())?;
        let saved = runtime.block_on(store.exponents())?;
        let last = || committed.last().map(|manifest| manifest.exponents.clone());
        let exponents = match job.spec.hessian.accumulate {
            Accumulate::Exact => saved.or_else(last),
            Accumulate::F32 => Some(Exponents::new()),
        };
        let job = CoreJob {
            inventory: Arc::new(inputs.described.inventory.clone()),
            plan: Arc::new(inputs.plan.clone()),
            committed: committed.len() as u32,
            exponents,
            life,
            options,
        };
        let folder = (!url.contains("://")).then(|| PathBuf::from(&url));
        Ok(Self { store, runtime, folder, job, resumed: opened == Opened::Resumed })
    }

    /// Whether the output is there, written by an earlier process of the same job whose state is there too. Nothing is made where
    /// none is.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) fn has_written(job: &Job) -> Result<bool> {
        let record = Path::new(&job.spec.output.path).join(RECORD_FILE);
        let Ok(words) = std::fs::read(record) else { return Ok(false) };
        if !serde_json::from_slice::<PruningRecord>(&words).is_ok_and(|record| record.job == job.spec) {
            return Ok(false);
        }
        let Ok(store) = JobStore::open(&location(job), job.stores().pairs()) else { return Ok(false) };
        match crate::service::runtime()?.block_on(store.job()) {
            Ok(record) => Ok(record.spec == job.spec),
            Err(StoreError::Missing { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Where workers of this process put and find weights.
    pub fn shelf(&self) -> StoreShelf {
        StoreShelf::new(self.store.clone(), self.runtime.handle().clone())
    }

    /// Where the coordinator writes what it decides.
    pub fn records(&self) -> StoreRecords {
        StoreRecords { store: self.store.clone(), life: self.job.life }
    }

    /// The runtime that the store's calls wait on.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// What its messages call it: where it is.
    pub fn url(&self) -> &str {
        self.store.name()
    }

    /// Where it is for processes in other folders.
    ///
    /// # Errors
    /// When this process has no folder any more.
    pub fn absolute_url(&self) -> Result<String> {
        match &self.folder {
            Some(folder) => Ok(std::path::absolute(folder).map_err(Error::system)?.display().to_string()),
            None => Ok(self.url().to_owned()),
        }
    }

    /// Removes the store's directory: the job is done, or cannot be done as it is. Objects elsewhere stay.
    pub fn remove(self) {
        if let Some(folder) = &self.folder
            && let Err(error) = std::fs::remove_dir_all(folder)
        {
            tracing::warn!(folder = %folder.display(), %error, "the state of the job could not be removed");
        }
    }
}

/// What a job says of how it is coordinated.
pub(crate) fn options(spec: &JobSpec) -> Options {
    let split_above = Some(spec.packages.split_above);
    Options { refine: spec.sparsity.refinement(), split_above, ..Options::default() }
}

/// Where a job keeps its state.
fn location(job: &Job) -> String {
    match &job.spec.output.state {
        Some(state) => state.clone(),
        None => format!("{}.state", job.spec.output.path.trim_end_matches('/')),
    }
}

/// The digest of words as JSON.
fn digest(words: &impl Serialize) -> Result<Digest> {
    let json = serde_json::to_vec(words).map_err(|e| Error::system(e.into()))?;
    Ok(Digest::of(&json))
}
