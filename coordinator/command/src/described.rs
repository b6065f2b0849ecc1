//! What a job's pipeline is, as far as its configuration and headers tell.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use globset::Glob;
use obsdiff_core::{PlanCost, PlanError, Tokens, Workload};
use obsdiff_engine::architecture::{Guidance, TransformerConfig};
use obsdiff_engine::checkpoint::Weights;
use obsdiff_engine::pipeline::{LatentSize, PipelineFolder};
use obsdiff_proto::{ComputeType, Inventory, JobError, JobSpec, Plan};

use crate::job::Job;
use crate::pipeline_path::not_a_pipeline;
use crate::{Error, Result};

/// The first tensor that a glob on names of linears matches, as it is named or as the part of the model that it belongs to.
fn met(weights: &Weights, glob: &str) -> Option<String> {
    let glob = Glob::new(glob).ok()?.compile_matcher();
    let mut names: Vec<&str> = weights.entries().map(|(name, _)| name).collect();
    names.sort_unstable();
    let part = |name: &&str| name.rsplit_once('.').is_some_and(|(part, _)| glob.is_match(part));
    let met = names.iter().find(|name| glob.is_match(name) || part(name))?;
    Some((*met).to_owned())
}

/// A pipeline that was opened and checked for a job, of which no weight was read.
#[derive(Debug)]
pub struct Described {
    /// Its folder.
    pub pipeline: PipelineFolder,
    /// Its transformer's sizes.
    pub config: Arc<dyn TransformerConfig>,
    /// Its transformer's prunable parts.
    pub inventory: Inventory,
    /// The size of the latents that the job asks for.
    pub size: LatentSize,
    /// Tokens of one picture.
    pub tokens: Tokens,
    /// Every file that decides what the pipeline computes.
    pub files: Vec<PathBuf>,
}

impl Described {
    /// Opens the pipeline of a job, and checks the configuration of every component, the headers of the transformer's weights and
    /// the size of the pictures.
    ///
    /// # Errors
    /// What of it cannot be used, by file and key.
    pub fn read(job: &Job) -> Result<Self> {
        let calibration = &job.spec.calibration;
        let path = Path::new(&job.spec.model.path);
        if let Some(problem) = not_a_pipeline(path) {
            return Err(job.refuse(JobError::new("model.path", problem)));
        }
        let pipeline = PipelineFolder::open(path)?;
        let config = pipeline.transformer_config().clone();
        config.check(&pipeline.transformer_weights()?)?;
        let of_job = |e| argument_of(job, e);
        let size = pipeline.latent_size(calibration.height, calibration.width).map_err(of_job)?;
        pipeline.schedule(calibration.steps as usize, size.tokens).map_err(of_job)?;
        let encoders =
            pipeline.text_encoders(calibration.max_sequence_length as usize, &Device::Cpu).map_err(of_job)?;
        let tokens = Tokens {
            image: size.tokens as u64,
            text: encoders.tokens() as u64,
            branches: config.guidance(calibration.guidance).branches() as u64,
        };
        let files = pipeline.files()?.into_iter().chain(encoders.files()).collect();
        Ok(Self { inventory: config.inventory(), pipeline, config, size, tokens, files })
    }

    /// The plan of a job on this pipeline.
    ///
    /// # Errors
    /// When the job cannot be planned, by the key that has to be changed.
    pub fn plan(&self, job: &Job) -> Result<Plan> {
        obsdiff_core::plan(&job.spec, &self.inventory, self.tokens).map_err(|error| {
            let PlanError::IdleRule { rule, glob, example } = &error else { return job.unplanned(error) };
            match self.pipeline.transformer_weights().map(|weights| met(&weights, glob)) {
                Ok(Some(met)) => {
                    let linear = met.strip_suffix(".weight").unwrap_or(&met);
                    let why = if self.inventory.linears.iter().any(|other| other.name == linear) {
                        "but rules go by names of linears, without `.weight`"
                    } else {
                        "which is never pruned"
                    };
                    let problem =
                        format!("\"{glob}\" matches `{met}`, {why}: linears that are pruned have names like `{example}`");
                    job.refuse(JobError::new(format!("sparsity.rules[{rule}].match"), problem))
                }
                Ok(None) => job.unplanned(error),
                Err(unread) => unread.into(),
            }
        })
    }

    /// The forward calls of one package of the job.
    pub fn workload(&self, spec: &JobSpec) -> Workload {
        Workload::new(spec, self.tokens, self.forward_flops(&*self.config))
    }

    /// How the job's guidance acts.
    pub fn guidance(&self, spec: &JobSpec) -> Guidance {
        self.config.guidance(spec.calibration.guidance)
    }

    /// Operations of one forward call of a transformer of these sizes on one picture of the job.
    pub fn forward_flops(&self, config: &dyn TransformerConfig) -> f64 {
        config.flops(1, self.tokens.image as usize, self.tokens.text as usize)
    }

    /// What a plan of the job costs.
    pub fn cost(&self, spec: &JobSpec, plan: &Plan) -> PlanCost {
        let (accumulate, refine) = (spec.hessian.accumulate, spec.sparsity.refinement());
        PlanCost::new(plan, &self.inventory, accumulate, refine, &self.workload(spec))
    }
}

/// The type of tensors that a job's forward calls compute in.
pub fn compute_type(dtype: ComputeType) -> DType {
    match dtype {
        ComputeType::F32 => DType::F32,
        ComputeType::Bf16 => DType::BF16,
        ComputeType::F16 => DType::F16,
    }
}

/// The engine names the key that an argument came from; this adds the job file.
fn argument_of(job: &Job, error: obsdiff_engine::Error) -> Error {
    match error {
        obsdiff_engine::Error::Argument(problem) => Error::content(job.path(), problem),
        other => other.into(),
    }
}
