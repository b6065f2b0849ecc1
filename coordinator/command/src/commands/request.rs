//! What `sample` and `compare` are asked for: by options, else by the job that pruned, else by the model.

use std::path::Path;

use obsdiff_engine::export::PruningRecord;
use obsdiff_engine::pipeline::PipelineFolder;
use obsdiff_proto::{ComputeType, JobSpec, counted};

use crate::cli::SamplingArgs;
use crate::prompts::read_prompts;
use crate::sampling::Settings;
use crate::{Error, Result};

/// Prompts of a file that are used where no count is given.
const DEFAULT_COUNT: u32 = 8;
/// Denoising steps where neither an option nor a job says them.
const DEFAULT_STEPS: u32 = 25;
/// Prompts of a batch, where neither an option nor a job says it.
const DEFAULT_BATCH: u32 = 4;

/// The prompts, and what of the settings is known without the model.
pub(super) struct Request<'a> {
    args: &'a SamplingArgs,
    job: Option<JobSpec>,
    seed: u64,
    /// The prompts.
    pub(super) prompts: Vec<String>,
}

impl<'a> Request<'a> {
    /// Reads the prompts, and the record of the `pipeline`, where it has one.
    ///
    /// # Errors
    /// When there is no prompt, or too few, or the record cannot be read.
    pub(super) fn read(args: &'a SamplingArgs, pipeline: &Path) -> Result<Self> {
        let (job, held_out) = match PruningRecord::read(pipeline)? {
            Some(record) => (Some(record.job), record.held_out),
            None => (None, Vec::new()),
        };
        let of_job = args.file.is_none() && args.prompts.is_empty();
        let prompts = if let Some(file) = &args.file {
            let count = args.count.unwrap_or(DEFAULT_COUNT) as usize;
            let prompts = read_prompts(file, args.column.as_deref(), Some(count))?;
            enough(args, prompts, &file.display().to_string())?
        } else if of_job {
            if held_out.is_empty() {
                let problem = format!(
                    "is missing, and {} names no held-out prompts: give --prompt or --prompts",
                    pipeline.display()
                );
                return Err(Error::key("--prompt", problem));
            }
            enough(args, held_out, &pipeline.display().to_string())?
        } else {
            args.prompts.clone()
        };
        let first = job.as_ref().filter(|_| of_job).map_or(0, |job| job.calibration.prompt_count());
        let of_job = job.as_ref().map_or(0, |job| job.calibration.seed.saturating_add(first.into()));
        let seed = args.seed.unwrap_or(of_job);
        if seed.checked_add(prompts.len() as u64).is_none() {
            let problem = format!(
                "is {seed}, but prompt i starts from the noise of seed + i, which is at most 2^64 - 1"
            );
            return Err(Error::key("--seed", problem));
        }
        Ok(Self { args, job, seed, prompts })
    }

    /// How the pictures are made; what neither an option nor a job says is as diffusers' pipeline for the model has it.
    pub(super) fn settings(&self, pipeline: &PipelineFolder) -> Settings {
        let args = self.args;
        let defaults = pipeline.transformer_config().defaults();
        let of_job = self.job.as_ref().map(|job| &job.calibration);
        let steps = args.steps.or(of_job.map(|c| c.steps)).unwrap_or(DEFAULT_STEPS);
        let tokens = args.max_sequence_length.or(of_job.map(|c| c.max_sequence_length));
        Settings {
            steps: steps as usize,
            guidance: args.guidance.or(of_job.map(|c| c.guidance)).unwrap_or(defaults.guidance),
            true_guidance: args.true_guidance.or(of_job.map(|c| c.true_guidance)).unwrap_or(1.0),
            seed: self.seed,
            height: args.height.or(of_job.and_then(|c| c.height)),
            width: args.width.or(of_job.and_then(|c| c.width)),
            max_sequence_length: tokens.unwrap_or(defaults.max_sequence_length) as usize,
            batch: args.batch.or(self.job.as_ref().map(shard)).unwrap_or(DEFAULT_BATCH) as usize,
            dtype: self.job.as_ref().map_or(ComputeType::F32, |job| job.model.dtype),
        }
    }
}

/// The first `--count` prompts, or all of them.
fn enough(args: &SamplingArgs, mut prompts: Vec<String>, place: &str) -> Result<Vec<String>> {
    if let Some(count) = args.count {
        if prompts.len() < count as usize {
            let held = counted(prompts.len(), "prompt");
            let problem = format!("is {count}, but {place} holds {held}: lower it, or give more prompts");
            return Err(Error::key("--count", problem));
        }
        prompts.truncate(count as usize);
    }
    Ok(prompts)
}

/// Prompts of a job's batches.
fn shard(job: &JobSpec) -> u32 {
    job.calibration.shard_size.min(job.calibration.prompt_count()).max(1)
}
