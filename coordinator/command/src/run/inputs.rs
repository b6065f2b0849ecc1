//! Everything a job reads, opened and checked before any work.

use std::sync::Arc;

use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::device::ComputeDevice;
use obsdiff_proto::{ByteSize, InputDigest, Plan};
use obsdiff_worker::conditioning::ConditioningFile;
use obsdiff_worker::grams::GramIndex;

use super::finished::FinishedOutput;
use super::output::{self, FoundOutput};
use super::{free_space, grams, places};
use crate::budget::with_surveys;
use crate::described::Described;
use crate::fit::OnDevice;
use crate::job::JobFile;
use crate::progress::PackageWork;
use crate::prompts::JobPrompts;
use crate::run_time::package_work;
use crate::shares::ProductShares;
use crate::{Result, conditioning, fit};

/// A job's pipeline, prompts and plan.
pub struct Inputs {
    /// The pipeline, its components checked.
    pub described: Described,
    /// The transformer's weights, not read yet.
    pub weights: Arc<Weights>,
    /// Prompts to calibrate and to evaluate on.
    pub prompts: JobPrompts,
    /// The conditioning of the prompts, where it was made elsewhere and this process has it.
    pub conditioning: Option<ConditioningFile>,
    /// The plan.
    pub plan: Plan,
    /// The output is there: an earlier process of the same job wrote it, and ended before it could remove the job's state.
    pub written: bool,
    /// The output of this very job, which is done: its state is removed, and nothing is left to do.
    pub(crate) finished: Option<FinishedOutput>,
    /// Digests of the model's files, by their paths in its folder: of all that decide the result.
    pub model_files: Vec<InputDigest>,
    /// Digests of the files of prompts, by the paths that the job gives; of a job that goes by kept Grams, those of these, and theirs.
    pub prompt_files: Vec<InputDigest>,
    /// What the Grams are of that the job goes by, where it does not calibrate.
    pub kept: Option<Arc<GramIndex>>,
}

impl Inputs {
    /// Opens what the job names, checks that all of it fits together, that the output can be written and that the Grams of so many
    /// workers fit in `memory` where it is known, and plans.
    ///
    /// # Errors
    /// The first thing that cannot be used, naming the key, the file or the layer.
    pub fn open(job: &JobFile, workers: usize, memory: Option<ByteSize>) -> Result<Self> {
        Self::open_on(job, workers, memory, None)
    }

    /// The same for workers on one open GPU, with so much `available` memory that weights, activations and Grams must fit in, too.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_on(
        job: &JobFile,
        workers: usize,
        memory: Option<ByteSize>,
        available: Option<ByteSize>,
    ) -> Result<Self> {
        let _span = tracing::info_span!("check").entered();
        let conditioning = conditioning::open(job)?;
        let prompts = JobPrompts::load(job, conditioning.as_ref())?;
        let text_tokens = conditioning.as_ref().map(ConditioningFile::text_tokens);
        let described = Described::outline(job, text_tokens)?;
        conditioning::check(job, conditioning.as_ref(), &described, &prompts)?;
        places::check(job)?;
        let found = output::check(job, &described, workers > 0)?;
        let plan = described.plan(job)?;
        // A job that is done takes no memory any more.
        let is_finished = matches!(found, FoundOutput::Finished(_));
        // A device with memory of its own keeps the Grams there: those of the host stay untouched.
        if let Some(memory) = memory.filter(|_| !is_finished && available.is_none()) {
            fit::check(job, &described, &plan, workers, memory)?;
        }
        if let Some(available) = available.filter(|_| !is_finished) {
            OnDevice::new(job, &described, &plan).once_open().check(workers, available)?;
        }
        let plan = with_surveys(job, &described, plan)?;
        if matches!(found, FoundOutput::None) {
            free_space::check(job, &described, &plan)?;
        }
        // A model in an object store is downloaded once nothing else is to be refused.
        let described =
            if job.model_cache().is_some() { Described::read(job, text_tokens)? } else { described };
        let weights = Arc::new(described.pipeline.transformer_weights()?);
        let model_files = described.files.digests(described.pipeline.path(), &|| ())?;
        let prompt_files = match job.kept() {
            Some(kept) => grams::files(job, kept, &model_files)?,
            None => prompts.files(&job.spec).into_iter().chain(conditioning::digest(job)?).collect(),
        };
        let (written, finished) = match found {
            FoundOutput::None => (false, None),
            FoundOutput::LeftOver => (true, None),
            FoundOutput::Finished(finished) => {
                (false, Some(finished.confirmed(job, model_files.iter().chain(&prompt_files))?))
            }
        };
        Ok(Self {
            described,
            weights,
            prompts,
            conditioning,
            plan,
            written,
            finished,
            model_files,
            prompt_files,
            kept: job.kept().cloned(),
        })
    }
}

impl Inputs {
    /// Digests of all files that decide the result.
    pub fn digests(&self) -> Vec<InputDigest> {
        self.model_files.iter().chain(&self.prompt_files).cloned().collect()
    }

    /// How much work each package is, by which progress is counted, where kinds of work reach these shares.
    pub(crate) fn work(&self, job: &JobFile, shares: &ProductShares) -> Vec<PackageWork> {
        let cost = self.described.cost(&job.spec, &self.plan);
        let workload = self.described.workload(&job.spec);
        cost.packages.iter().map(|package| package_work(package, &workload, shares)).collect()
    }

    /// How many workers a process takes that was given no number: see [`fit::best_workers`]; on a GPU one.
    pub fn workers_for(&self, job: &JobFile, memory: Option<ByteSize>, device: &ComputeDevice) -> usize {
        if !device.is_host() {
            return 1;
        }
        let (spec, described) = (&job.spec, &self.described);
        let needs = described.memory(spec, &self.plan);
        fit::best_workers(&needs, &described.cost(spec, &self.plan), self.plan.shards.len(), memory)
    }

    /// The peak memory that the plan predicts for so many workers of one process.
    pub fn predicted_peak(&self, job: &JobFile, workers: usize) -> ByteSize {
        let (spec, described) = (&job.spec, &self.described);
        ByteSize(
            described.memory(spec, &self.plan).peak_of(&described.cost(spec, &self.plan), workers as u64),
        )
    }
}
