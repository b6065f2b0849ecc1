//! What a job has done so far: its store, begun or found again.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use obsdiff_coordinator::StoreRecords;
use obsdiff_core::{Job as CoreJob, Options};
use obsdiff_engine::export::{PruningRecord, RECORD_FILE};
use obsdiff_files::{Disk, read_regular};
use obsdiff_proto::message::Exponents;
use obsdiff_proto::{Accumulate, Digest, JobError, JobSpec, PackageId};
use obsdiff_store::{JobRecord, JobStore, Opened, Prompts};
use obsdiff_worker::device::StoreShelf;
use serde::Serialize;
use tokio::runtime::Runtime;

use super::Inputs;
use crate::job::Job;
use crate::progress::Progress;
use crate::{Error, Result};

/// The store of a job that this process coordinates.
pub struct State {
    store: JobStore,
    runtime: Runtime,
    /// The directory, where it is one.
    folder: Option<PathBuf>,
    /// The first package that was finished and is run again, since something of it is missing.
    pub went_back: Option<PackageId>,
    /// How far the job is.
    pub job: CoreJob,
    /// Whether an earlier coordinator began it.
    pub resumed: bool,
}

impl State {
    /// Begins a job, or finds an earlier run of the same one. The store is at `output.state`, or beside the output.
    ///
    /// # Errors
    /// When it holds another job, naming what differs, or anything that is not obsdiff's; when another process runs the job, or it cannot
    /// be read or written.
    pub fn open(job: &Job, inputs: &Inputs) -> Result<Self> {
        let _span = tracing::info_span!("store").entered();
        let runtime = crate::runtime::runtime()?;
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
            model_files: inputs.model_files.clone(),
            prompt_files: inputs.prompt_files.clone(),
            prompts: digest(&prompts)?,
            inventory: digest(&inputs.described.inventory)?,
            plan: digest(&inputs.plan)?,
        };
        let starting = store.at_start();
        let opened = runtime.block_on(starting.begin(&record, &prompts))?;
        let life = runtime.block_on(starting.raise_life())?;
        let (committed, went_back) = runtime.block_on(starting.recover())?;
        let saved = runtime.block_on(starting.exponents())?;
        let last = || committed.last().map(|manifest| manifest.exponents.clone());
        let exponents = match job.spec.hessian.accumulate {
            Accumulate::Exact => saved.or_else(last),
            Accumulate::F32 => Some(Exponents::new()),
        };
        let kept = runtime.block_on(store.hardware())?;
        let hardware = kept.or_else(|| committed.last().and_then(|manifest| manifest.hardware.clone()));
        let job = CoreJob {
            inventory: Arc::new(inputs.described.inventory.clone()),
            plan: Arc::new(inputs.plan.clone()),
            committed: committed.len() as u32,
            exponents,
            hardware,
            life,
            options,
        };
        let folder = (!url.contains("://")).then(|| PathBuf::from(&url));
        Ok(Self { store, runtime, folder, went_back, job, resumed: opened == Opened::Resumed })
    }

    /// Whether the output is there, written by an earlier process of the same job whose state is there too, if only in part. Nothing is
    /// made where none is.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(super) fn has_written(job: &Job) -> Result<bool> {
        if !written_record(job).is_some_and(|record| record.job == job.spec) {
            return Ok(false);
        }
        let Ok(store) = JobStore::open(&location(job), job.stores().pairs()) else { return Ok(false) };
        Ok(crate::runtime::runtime()?.block_on(store.at_start().is_of(&job.spec))?)
    }

    /// Whether the output is written, and an earlier process ended while it removed this state: nothing is to be done but that.
    pub fn is_left_over(&self, inputs: &Inputs) -> bool {
        inputs.written && (self.job.committed as usize) < inputs.plan.packages.len()
    }

    /// Says what an earlier process has finished.
    pub fn note(&self, inputs: &Inputs, progress: &Progress) {
        let (done, all) = (self.job.committed, inputs.plan.packages.len());
        if self.resumed {
            progress.note(&format!("{} is found: {done} of {all} packages are finished", self.url()));
        }
        if let Some(package) = self.went_back {
            progress.note(&format!(
                "{} lacks objects of package {}: it is run again, and so are those after it",
                self.url(),
                package.0 + 1
            ));
        }
    }

    /// Whether this machine is of the kind that the job was begun on, where that matters.
    ///
    /// # Errors
    /// When it is of another kind.
    pub fn check_hardware(&self, job: &Job) -> Result<()> {
        let (own, mixed) = (obsdiff_engine::hardware(), job.spec.workers.mixed_hardware);
        match &self.job.hardware {
            Some(begun) if !mixed && *begun != own => {
                let problem = format!(
                    "is not set, but {} was begun on {begun} and this machine is {own}, whose results may differ in bits: \
                     go on there, or begin another job with mixed_hardware = true",
                    self.url()
                );
                Err(job.refuse(JobError::new("workers.mixed_hardware", problem)))
            }
            _ => Ok(()),
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

    /// What becomes of the state after a failure. It stays, so that the same command can go on; but where the input has to change
    /// first, and this process began the job, it is removed: nothing is left that was not there before.
    pub fn after(self, error: Error, disk: &Disk) -> Error {
        let error = error.after_begin(self.url());
        if error.exit_code() == 2 && !self.resumed && !matches!(error, Error::Damaged(_)) {
            self.remove(disk);
        }
        error
    }

    /// Removes what the job has put in its store: it is done, or cannot be done as it is.
    pub fn remove(self, disk: &Disk) {
        if let Err(error) = self.runtime.block_on(self.store.remove(disk)) {
            tracing::warn!(state = self.url(), %error, "the state of the job could not be removed");
        }
    }
}

/// Much more than a record of a million linears takes.
const MAX_RECORD_BYTES: u64 = 1 << 30;

/// What the output says of itself, where it is there.
pub(super) fn written_record(job: &Job) -> Option<PruningRecord> {
    let record = Path::new(&job.spec.output.path).join(RECORD_FILE);
    let words = read_regular(&record, MAX_RECORD_BYTES).ok()?;
    serde_json::from_slice(&words).ok()
}

/// What a job says of how it is coordinated.
pub(crate) fn options(spec: &JobSpec) -> Options {
    let split_above = Some(spec.packages.split_above);
    Options {
        refine: spec.sparsity.refinement(),
        split_above,
        mixed_hardware: spec.workers.mixed_hardware,
        ..Options::default()
    }
}

/// Where a job keeps its state: a directory or a URL.
pub(super) fn location(job: &Job) -> String {
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
