//! What a job's pipeline is, as far as its configuration and headers tell.

use std::path::Path;

use candle_core::{DType, Device};
use obsdiff_core::{MemoryNeeds, Tokens, Workload};
use obsdiff_engine::model::sd3::Sd3Config;
use obsdiff_engine::pipeline::{LatentSize, PipelineFolder};
use obsdiff_proto::{ComputeType, Inventory, JobSpec, Plan};

use crate::job::Job;
use crate::{Error, Result};

/// A pipeline that was opened and checked for a job, of which no weight was read.
#[derive(Debug)]
pub struct Described {
    /// Its folder.
    pub pipeline: PipelineFolder,
    /// Its transformer's sizes.
    pub config: Sd3Config,
    /// Its transformer's prunable parts.
    pub inventory: Inventory,
    /// The size of the latents that the job asks for.
    pub size: LatentSize,
    /// Tokens of one picture.
    pub tokens: Tokens,
}

impl Described {
    /// Opens the pipeline of a job, and checks the configuration of every component, the headers of the transformer's weights and
    /// the size of the pictures.
    ///
    /// # Errors
    /// What of it cannot be used, by file and key.
    pub fn read(job: &Job) -> Result<Self> {
        let calibration = &job.spec.calibration;
        let pipeline = PipelineFolder::open(Path::new(&job.spec.model.path))?;
        let config = pipeline.transformer_config().clone();
        config.check(&pipeline.transformer_weights()?)?;
        let of_job = |e| argument_of(job, e);
        let size = pipeline.latent_size(calibration.height, calibration.width).map_err(of_job)?;
        pipeline.scheduler()?.schedule(calibration.steps as usize, size.tokens).map_err(of_job)?;
        let encoders =
            pipeline.text_encoders(calibration.max_sequence_length as usize, &Device::Cpu).map_err(of_job)?;
        let tokens = Tokens { image: size.tokens as u64, text: encoders.tokens() as u64 };
        Ok(Self { inventory: config.inventory(), pipeline, config, size, tokens })
    }

    /// The forward calls of one package of the job.
    pub fn workload(&self, spec: &JobSpec) -> Workload {
        Workload::new(spec, self.tokens, self.config.forward_flops(self.tokens.image, self.tokens.text))
    }

    /// What the job holds besides its Grams: the transformer in its compute type; the encoded prompts; the activations of
    /// one batch; three squares and two strips of the largest site being solved.
    pub fn memory(&self, spec: &JobSpec, plan: &Plan) -> MemoryNeeds {
        let number = compute_type(spec.model.dtype).size_in_bytes() as u64;
        let workload = self.workload(spec);
        let prompts = workload.prompts + 1;
        let text = prompts
            * (self.tokens.text * self.config.joint_attention_dim as u64
                + self.config.pooled_projection_dim as u64);
        let batch = u64::from(spec.calibration.shard_size).min(prompts) * workload.branches;
        let sites =
            plan.packages.iter().flat_map(|package| &package.sites).map(|id| self.inventory.site(*id));
        let solver = sites.map(|site| {
            let n = site.width as u64;
            let rows = site.linears.iter().map(|l| self.inventory.linear(*l).rows as u64).max().unwrap_or(0);
            4 * (n * n + 3 * rows * n)
        });
        MemoryNeeds {
            model: self.inventory.parameters * number,
            text: text * 4,
            activations: self.config.activation_bytes(
                batch as usize,
                self.tokens.image as usize,
                self.tokens.text as usize,
                compute_type(spec.model.dtype),
            ),
            solver: solver.max().unwrap_or(0),
            base: BASE_BYTES,
        }
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

/// The program itself with its tokenizers.
const BASE_BYTES: u64 = 26 << 20;
