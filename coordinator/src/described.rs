//! What a job's pipeline is, as far as its configuration and headers tell.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use obsdiff_core::{MemoryNeeds, PlanCost, Tokens, Workload};
use obsdiff_engine::calibrate::Encoded;
use obsdiff_engine::model::sd3::Sd3Config;
use obsdiff_engine::pipeline::{LatentSize, PipelineFolder};
use obsdiff_engine::solve::REFINED_TOGETHER;
use obsdiff_proto::{ComputeType, Inventory, JobSpec, Package, Plan};

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
        let pipeline = PipelineFolder::open(Path::new(&job.spec.model.path))?;
        let config = pipeline.transformer_config().clone();
        config.check(&pipeline.transformer_weights()?)?;
        let of_job = |e| argument_of(job, e);
        let size = pipeline.latent_size(calibration.height, calibration.width).map_err(of_job)?;
        pipeline.scheduler()?.schedule(calibration.steps as usize, size.tokens).map_err(of_job)?;
        let encoders =
            pipeline.text_encoders(calibration.max_sequence_length as usize, &Device::Cpu).map_err(of_job)?;
        let tokens = Tokens { image: size.tokens as u64, text: encoders.tokens() as u64 };
        let files = pipeline.files()?.into_iter().chain(encoders.files()).collect();
        Ok(Self { inventory: config.inventory(), pipeline, config, size, tokens, files })
    }

    /// The forward calls of one package of the job.
    pub fn workload(&self, spec: &JobSpec) -> Workload {
        Workload::new(spec, self.tokens, self.forward_flops(&self.config))
    }

    /// Operations of one forward call of a transformer of these sizes on one picture of the job.
    pub fn forward_flops(&self, config: &Sd3Config) -> f64 {
        config.flops(1, self.tokens.image as usize, self.tokens.text as usize)
    }

    /// What a plan of the job costs.
    pub fn cost(&self, spec: &JobSpec, plan: &Plan) -> PlanCost {
        let (accumulate, refine) = (spec.hessian.accumulate, spec.sparsity.refinement());
        PlanCost::new(plan, &self.inventory, accumulate, refine, &self.workload(spec))
    }

    /// Bytes of all encoded prompts of a job, and of one.
    fn text_bytes(&self, spec: &JobSpec) -> (u64, u64) {
        let prompts = u64::from(spec.calibration.count) + u64::from(spec.evaluation.count) + 1;
        let sizes = [
            self.tokens.text,
            self.config.joint_attention_dim as u64,
            self.config.pooled_projection_dim as u64,
        ];
        let number = compute_type(spec.model.dtype).size_in_bytes() as u64;
        (Encoded::bytes(prompts, sizes, number), Encoded::bytes(1, sizes, number))
    }

    /// Bytes of encoded prompts that a job keeps in a file, as memory is not to hold them.
    pub fn text_spooled(&self, spec: &JobSpec) -> u64 {
        Some(self.text_bytes(spec).0).filter(|bytes| *bytes > Encoded::IN_MEMORY as u64).unwrap_or(0)
    }

    /// What the job holds besides its Grams: the transformer in its compute type; the encoded prompts that are not in a file, and
    /// those of one batch; the activations of one batch; of the site whose solving takes most, one square, three strips, and where
    /// it is refined four bands of rows and what its other linears became.
    pub fn memory(&self, spec: &JobSpec, plan: &Plan) -> MemoryNeeds {
        let number = compute_type(spec.model.dtype).size_in_bytes() as u64;
        let workload = self.workload(spec);
        let (all, one) = self.text_bytes(spec);
        let most = u64::from(spec.calibration.count.max(spec.evaluation.count));
        let prompts = u64::from(spec.calibration.shard_size).min(most);
        let batch = prompts * workload.branches;
        let kept = if self.text_spooled(spec) > 0 { 0 } else { all };
        let sites =
            plan.packages.iter().flat_map(|package| &package.sites).map(|id| self.inventory.site(*id));
        let solver = sites.map(|site| {
            let n = site.width as u64;
            let rows = || site.linears.iter().map(|l| self.inventory.linear(*l).rows as u64);
            let most = rows().max().unwrap_or(0);
            if plan.packages.first().is_some_and(Package::is_structured) {
                // S, S about the means, H^-1, W^T W and one more while they are made, all in f64.
                return 8 * (5 * n * n + 3 * most * n);
            }
            // Linears that are solved are kept until all of their site's are.
            let solved = rows().sum::<u64>() - most;
            let refined = match spec.sparsity.refinement() {
                0 => 0,
                _ => 4 * most.min(REFINED_TOGETHER as u64),
            };
            4 * n * (n + 3 * most + solved + refined)
        });
        MemoryNeeds {
            model: self.inventory.parameters * number,
            text: kept + (prompts + batch) * one,
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
