//! The model of a job, as its configuration and the headers of its files describe it.

use std::path::Path;
use std::sync::Arc;

use candle_core::DType;
use obsdiff_engine::architecture::{Guidance, TransformerConfig};
use obsdiff_engine::checkpoint::SourceFiles;
use obsdiff_engine::pipeline::{LatentSize, PipelineFolder};
use obsdiff_engine::pruner::ForwardCall;
use obsdiff_proto::{ComputeType, ForwardFlops, Inventory, JobError, JobSpec};

use super::path::not_a_pipeline;
use super::{PreparationError, Result};

/// A pipeline that was opened and checked for a job. No weight is read yet.
#[derive(Debug)]
pub struct JobModel {
    /// Its folder.
    pub pipeline: PipelineFolder,
    /// Its transformer's sizes.
    pub config: Arc<dyn TransformerConfig>,
    /// Its transformer's prunable parts.
    pub inventory: Inventory,
    /// The size of the latents that the job asks for.
    pub size: LatentSize,
    /// Tokens of a prompt.
    pub text_tokens: usize,
    /// Bytes of a GPU's memory that encoding the job's prompts takes at most; 0 where they come encoded.
    pub gpu_encoding_bytes: u64,
    /// Bytes of a GPU's memory that decoding pictures of the job takes, once all transformers are gone; 0 where no prompt is held out, or the decoder cannot
    /// be used.
    pub gpu_decoding_bytes: u64,
    /// How the job's guidance acts.
    pub guidance: Guidance,
    /// Every file that decides what the pipeline computes.
    pub files: SourceFiles,
}

impl JobModel {
    /// Opens the pipeline of a job in a `folder` of this machine, and checks the configuration of every component, the headers of the transformer's weights and
    /// the size of the pictures.
    ///
    /// `text_tokens` is given where the job's prompts come encoded, with so many tokens a prompt. The text encoders are then not opened, and
    /// may be missing.
    ///
    /// # Errors
    /// When anything cannot be used, naming the file and the key.
    pub fn open(spec: &JobSpec, folder: &Path, text_tokens: Option<usize>) -> Result<Self> {
        let calibration = &spec.calibration;
        if let Some(problem) = not_a_pipeline(folder) {
            return Err(JobError::new("model.path", problem).into());
        }
        let pipeline = match text_tokens {
            Some(_) => PipelineFolder::open_without_text(folder)?,
            None => PipelineFolder::open(folder)?,
        };
        let config = pipeline.transformer_config().clone();
        config.check(&pipeline.transformer_weights()?)?;
        let of_job = PreparationError::of_job;
        let size = pipeline.latent_size(calibration.height, calibration.width).map_err(of_job)?;
        pipeline.schedule(calibration.steps as usize, size.tokens).map_err(of_job)?;
        let (text_tokens, gpu_encoding_bytes, of_text) = match text_tokens {
            Some(tokens) => (tokens, 0, Vec::new()),
            None => {
                let tokens = calibration.max_sequence_length as usize;
                let encoders = pipeline.text_encoders(tokens).map_err(of_job)?;
                // Those that calibrate, those held out, and the empty one.
                let prompts = calibration.prompt_count() as usize + spec.evaluation.count as usize + 1;
                let bytes = encoders.gpu_bytes(prompts, compute_type(spec.model.dtype));
                (encoders.tokens(), bytes, encoders.files())
            }
        };
        // A decoder that cannot be used is reported when a picture is wanted: a job needs none.
        let decoding = pipeline.gpu_decoding_bytes(size).unwrap_or(0);
        let gpu_decoding_bytes = if spec.evaluation.count > 0 { decoding } else { 0 };
        let guidance = pipeline.guidance(calibration.guidance, calibration.true_guidance).map_err(of_job)?;
        Ok(Self {
            text_tokens,
            gpu_encoding_bytes,
            gpu_decoding_bytes,
            files: SourceFiles::open(pipeline.files()?.into_iter().chain(of_text))?,
            inventory: config.inventory(),
            guidance,
            pipeline,
            config,
            size,
        })
    }

    /// What one forward call of a transformer of these sizes costs on one picture of the job.
    pub fn forward_flops(&self, config: &dyn TransformerConfig) -> ForwardFlops {
        config.flops(1, self.size.tokens, self.text_tokens)
    }

    /// Bytes of a GPU's memory that the forward calls of a survey of the job take, with what it probes by; 0 where it does not probe.
    pub fn probing_gpu_bytes(&self, spec: &JobSpec) -> u64 {
        if !spec.sparsity.probes() {
            return 0;
        }
        let prompts = spec.probe.prompts.min(spec.calibration.prompt_count());
        let call = ForwardCall {
            config: &*self.config,
            pictures: prompts as usize * self.guidance.branches(),
            image: self.size.tokens,
            text: self.text_tokens,
            dtype: compute_type(spec.model.dtype),
        };
        let points = spec.probe.steps(spec.calibration.steps).len();
        call.gpu_bytes() + call.probe_bytes(points, &self.inventory)
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
