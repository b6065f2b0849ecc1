//! The order in which a worker prepares a job that it received, until it follows the job's orders.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use obsdiff_engine::device::ComputeDevice;
use obsdiff_files::Disk;
use obsdiff_proto::session::Briefing;
use obsdiff_store::JobStore;
use tokio::runtime::Handle;

use super::{PreparationError, ReceivedJob, Result, load};
use crate::conditioning::{ConditioningObjects, StoredConditionings, encode_missing};
use crate::device::{JobPartStore, Watch, WorkError, WorkerState, follow};
use crate::grams::{GramOrigin, JobGrams};
use crate::pruning_job::{Describe, JobOutput, Measuring, PruningJob, SourceFolder, known_texts};
use crate::stored_model::Extent;

/// What the process of a worker does for a job besides the worker's own work.
pub trait WorkerProcess {
    /// Its errors.
    type Error;
    /// What it knows of a job that it accepted.
    type Accepted;

    /// The folder of the job's model on this machine, with at least so much of the model.
    ///
    /// # Errors
    /// When the model cannot be brought here.
    fn model_folder(&self, extent: Extent) -> Result<PathBuf, Self::Error>;

    /// Checks that the memory of this machine and of its device has room for a job.
    ///
    /// # Errors
    /// When it has not.
    fn accept(&self, job: &ReceivedJob) -> Result<Self::Accepted, Self::Error>;

    /// Shows how far the encoding of so many prompts is.
    fn encoding(&self, prompts: usize) -> impl ShowEncoding;

    /// Describes the job's output to people. The job is loaded by now.
    fn describe<'a>(&'a self, job: &'a Self::Accepted) -> impl Describe + 'a;

    /// The error of a job that cannot be prepared.
    fn unprepared(&self, error: PreparationError) -> Self::Error;
}

/// Shows how far an encoding of prompts is. Dropped before it is finished, it failed.
pub trait ShowEncoding {
    /// So much is done, of so much.
    fn reached(&mut self, done: u64, all: u64);

    /// All is done.
    fn finish(self);
}

/// A job that a coordinator sent to this worker, and what the worker works with.
pub struct Assignment<'a> {
    /// What the coordinator sent.
    pub briefing: &'a Briefing,
    /// Settings of object stores, by name.
    pub store_settings: &'a [(String, String)],
    /// Where calls of object stores wait.
    pub runtime: &'a Handle,
    /// Where prompts are encoded, blocks computed, Grams summed and linears solved.
    pub device: &'a ComputeDevice,
    /// Writes the output, where that is a directory.
    pub disk: &'a Disk,
    /// The time since the process began.
    pub clock: &'a (dyn Fn() -> Duration + Sync),
    /// Where the files lie that the output gets as they are.
    pub source: &'a dyn SourceFolder,
    /// What the worker shares with its session.
    pub worker_state: &'a Arc<WorkerState>,
    /// Sees what the worker does.
    pub watch: Arc<dyn Watch>,
    /// Set once the worker follows orders.
    pub ready: &'a AtomicBool,
}

impl Assignment<'_> {
    /// Prepares the job, then follows its orders until the session ends. Gives why the worker failed, if it did.
    ///
    /// # Errors
    /// When the job cannot be prepared here.
    pub fn work<P: WorkerProcess>(&self, process: &P) -> Result<Option<WorkError>, P::Error> {
        let unprepared = |error| process.unprepared(error);
        let Self { briefing, worker_state, .. } = self;
        let spec = &briefing.spec;
        let (store, output) = self.open_places().map_err(unprepared)?;
        let folder = process.model_folder(Extent::of(spec))?;
        let received = self.receive(&store, &folder).map_err(unprepared)?;
        let accepted = process.accept(&received)?;
        // Reading weights counts as progress, so that a worker that loads long is not taken for one that hangs.
        let loading = Arc::clone(worker_state);
        received.weights.call_on_read(Arc::new(move || loading.advance()));
        // One worker encodes while the others wait. If the session ends meanwhile, the caller reports why.
        let Some(is_stored) = worker_state.wait_to_encode() else { return Ok(None) };
        let conditionings = self.encode(&received, is_stored, &store, process).map_err(unprepared)?;
        worker_state.encoded();
        let loaded = load(spec, &received.model, &received.weights, conditionings);
        let (model, trajectories) = loaded.map_err(|error| unprepared(error.into()))?;
        let grams = self.open_grams(&received).map_err(unprepared)?;
        let first = received.prompts.calibration.len() as u32;
        let held_out = first..trajectories.prompts();
        let description = process.describe(&accepted);
        let job = PruningJob {
            spec,
            model: &received.model,
            source: self.source,
            weights: &received.weights,
            plan: &briefing.plan,
            inputs: received.digests(),
            trajectories: &trajectories,
            held_out: known_texts(spec, &received.prompts.held_out),
            dense: None,
            keeper: grams.keeper,
            grams: grams.kept,
            measuring: Some(Measuring { held_out, clock: self.clock }),
            describe: &description,
            output,
            disk: self.disk,
            device: self.device.clone(),
        };
        let part_store = JobPartStore::new(store, self.runtime.clone());
        let mut engine = job.engine(model, Arc::new(part_store), self.watch.clone(), worker_state);
        self.ready.store(true, Ordering::SeqCst);
        follow(worker_state, &mut engine);
        Ok(worker_state.take_failure())
    }

    /// Opens the job's store and its output. Whichever worker is asked to writes the output, so each must be able to.
    fn open_places(&self) -> Result<(JobStore, JobOutput)> {
        let Self { briefing, store_settings, runtime, .. } = self;
        let store = JobStore::open(&briefing.store, store_settings)?;
        let output = JobOutput::of(&briefing.spec, store_settings, runtime);
        let output = output.map_err(PreparationError::of_output)?;
        output.try_writing(self.disk)?;
        Ok((store, output))
    }

    /// Opens the model in a folder, which must be the coordinator's, and reads the job's prompts and what its kept Grams are of.
    fn receive(&self, store: &JobStore, folder: &Path) -> Result<ReceivedJob> {
        let on_read = || self.worker_state.advance();
        ReceivedJob::open(self.briefing, (store, self.store_settings), self.runtime, folder, &on_read)
    }

    /// Sees that the job's store holds the conditioning of every prompt, unless another worker has done that, and opens it there.
    fn encode<P: WorkerProcess>(
        &self,
        received: &ReceivedJob,
        is_stored: bool,
        store: &JobStore,
        process: &P,
    ) -> Result<StoredConditionings> {
        let ReceivedJob { model, model_files, record, prompts, kept, .. } = received;
        let (spec, runtime) = (&self.briefing.spec, self.runtime);
        let files = (&**model_files, &*record.prompt_files);
        let objects = ConditioningObjects::needed(spec, files, prompts, kept.as_deref())?;
        // Thousands of prompts take gigabytes: each object is looked at again when its shard is run.
        if !is_stored {
            let texts = prompts.all();
            let mut shown = process.encoding(texts.len());
            let on_encoded = &mut |done, all| shown.reached(done, all);
            encode_missing(spec, model, &objects, &texts, (store, runtime), self.device, on_encoded)?;
            shown.finish();
        }
        Ok(StoredConditionings::open(spec, model, objects, store, runtime.clone())?)
    }

    fn open_grams(&self, received: &ReceivedJob) -> Result<JobGrams> {
        let origin = GramOrigin {
            spec: self.briefing.spec.clone(),
            hardware: self.device.hardware(),
            model_files: received.model_files.clone(),
            prompt_files: received.record.prompt_files.clone(),
            prompts: received.prompts.clone(),
        };
        Ok(JobGrams::open(origin, received.kept.as_ref(), self.store_settings, self.runtime)?)
    }
}
