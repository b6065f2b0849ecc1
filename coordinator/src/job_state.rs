//! The job state: how far a job is, and the store that holds it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use obsdiff_core::{Job, Options, StoredSums};
use obsdiff_files::Disk;
use obsdiff_proto::message::{Exponents, Receipt, SavedSums};
use obsdiff_proto::{Accumulate, Digest, InputDigest, Inventory, JobSpec, PackageId, Plan};
use obsdiff_store::{JobRecord, JobStore, Prompts, SumsRecord};
use serde::Serialize;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::{CoordinatorStore, Error, Opened, Result, StoreRecords};

/// How long a coordinator that stops waits for its last metrics to be stored: a store that is away must not hold up its end.
const METRICS_LIMIT: Duration = Duration::from_secs(5);

/// Everything that decides a job's result.
#[derive(Clone, Debug)]
pub struct JobInputs {
    /// The specification.
    pub spec: JobSpec,
    /// The model's prunable parts.
    pub inventory: Arc<Inventory>,
    /// The plan.
    pub plan: Arc<Plan>,
    /// Prompts to calibrate and to evaluate on.
    pub prompts: Prompts,
    /// Digests of the model's files, by their paths in its folder.
    pub model_files: Vec<InputDigest>,
    /// Digests of the files of prompts, by the paths that the job gives.
    pub prompt_files: Vec<InputDigest>,
}

/// The store of a job that this process coordinates.
pub struct JobState {
    store: CoordinatorStore,
    runtime: Runtime,
    /// The directory, where it is one.
    folder: Option<PathBuf>,
    /// The first finished package that runs again because a part of it is missing.
    pub went_back: Option<PackageId>,
    /// How far the job is.
    pub job: Job,
    /// Whether an earlier coordinator began it.
    pub resumed: bool,
}

impl JobState {
    /// Begins a job, or finds an earlier run of the same one, in the store at `url`: a directory, or a URL that is reached by `settings`
    /// as [`JobStore::create`] takes them. The store's calls wait on `runtime`.
    ///
    /// # Errors
    /// When the store holds another job, naming what differs, or anything that is not obsdiff's; when another process runs the job, or it
    /// cannot be read or written.
    pub fn open(
        url: &str,
        settings: &[(String, String)],
        inputs: &JobInputs,
        runtime: Runtime,
    ) -> Result<Self> {
        let _span = tracing::info_span!("store").entered();
        let store = CoordinatorStore::create(url, settings)?;
        let record = JobRecord {
            release: env!("CARGO_PKG_VERSION").to_owned(),
            spec: inputs.spec.clone(),
            model_files: inputs.model_files.clone(),
            prompt_files: inputs.prompt_files.clone(),
            prompts: digest(&inputs.prompts)?,
            inventory: digest(&*inputs.inventory)?,
            plan: digest(&*inputs.plan)?,
        };
        let starting = store.at_start();
        let opened = runtime.block_on(starting.begin(&record, &inputs.prompts))?;
        let life = runtime.block_on(starting.raise_life())?;
        let (committed, went_back) = runtime.block_on(starting.recover())?;
        let saved = runtime.block_on(starting.exponents())?;
        let last = || committed.last().map(|manifest| manifest.exponents.clone());
        let exponents = match inputs.spec.hessian.accumulate {
            Accumulate::Exact => saved.or_else(last),
            Accumulate::F32 => Some(Exponents::new()),
        };
        let kept = runtime.block_on(store.hardware())?;
        let hardware = kept.or_else(|| committed.last().and_then(|manifest| manifest.hardware.clone()));
        let sums = runtime.block_on(starting.saved_sums())?;
        let job = Job {
            inventory: inputs.inventory.clone(),
            plan: inputs.plan.clone(),
            committed: committed.len() as u32,
            exponents,
            hardware,
            saved: sums.into_iter().map(stored).collect(),
            life,
            options: Options::of(&inputs.spec),
        };
        let folder = (!url.contains("://")).then(|| PathBuf::from(url));
        Ok(Self { store, runtime, folder, went_back, job, resumed: opened == Opened::Resumed })
    }

    /// Whether the store at `url` holds a job state of this specification, or a part of it. This creates nothing.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn is_at(
        url: &str,
        settings: &[(String, String)],
        spec: &JobSpec,
        runtime: &Runtime,
    ) -> Result<bool> {
        let Ok(store) = JobStore::open(url, settings) else { return Ok(false) };
        Ok(runtime.block_on(store.at_start().is_of(spec))?)
    }

    /// Whether every package is finished.
    pub fn is_finished(&self) -> bool {
        self.job.committed as usize >= self.job.plan.packages.len()
    }

    /// Where the coordinator writes what it decides.
    pub fn records(&self) -> StoreRecords {
        StoreRecords { store: self.store.clone(), life: self.job.life }
    }

    /// Keeps the last metrics of a coordinator that stops before the job is done, unless the store takes longer than that is worth.
    pub fn keep_metrics(&self, text: &str) {
        let store = self.store.at_start();
        let kept = self.runtime.block_on(async { timeout(METRICS_LIMIT, store.put_metrics(text)).await });
        let problem = match kept {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(late) => late.to_string(),
        };
        tracing::warn!(state = self.url(), problem, "the last metrics were not kept");
    }

    /// The job's objects, as workers of this process reach them.
    pub fn store(&self) -> &JobStore {
        &self.store
    }

    /// The runtime that the store's calls wait on.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Its location, as messages name it.
    pub fn url(&self) -> &str {
        self.store.name()
    }

    /// Its location, for processes that run in other folders.
    ///
    /// # Errors
    /// When the current folder of this process no longer exists.
    pub fn absolute_url(&self) -> io::Result<String> {
        match &self.folder {
            Some(folder) => Ok(std::path::absolute(folder)?.display().to_string()),
            None => Ok(self.url().to_owned()),
        }
    }

    /// Removes all that the job has put in its store: the job is finished, or its input has to change.
    pub fn remove(self, disk: &Disk) {
        if let Err(error) = self.runtime.block_on(self.store.remove(disk)) {
            tracing::warn!(state = self.url(), %error, "the state of the job could not be removed");
        }
    }
}

/// Saved sums as the core takes them.
fn stored((receipt, record): (Receipt, SumsRecord)) -> StoredSums {
    let SumsRecord { package, exponents, shards, .. } = record;
    let saved = SavedSums { shards: shards.into_iter().collect(), receipt };
    StoredSums { package, exponents, saved: Arc::new(saved) }
}

/// The digest of a value as JSON.
fn digest(words: &impl Serialize) -> Result<Digest> {
    let json = serde_json::to_vec(words).map_err(Error::Record)?;
    Ok(Digest::of(&json))
}
