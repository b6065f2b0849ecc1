//! Pictures from prompts: the same trajectories through one transformer after another.

use std::ops::Range;
use std::path::Path;

use candle_core::DType;
use obsdiff_engine::calibrate::{Denoised, Encoded, Trajectories};
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::model::DiffusionModel;
use obsdiff_engine::pipeline::PipelineFolder;
use obsdiff_proto::ComputeType;
use obsdiff_worker::preparation::{ShowEncoding, compute_type, not_a_pipeline};
use serde::Serialize;
use tracing::info_span;
use tracing::span::EnteredSpan;

use crate::progress::{PhaseProgress, Progress};
use crate::{Error, Result};

/// How trajectories run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Denoising steps.
    pub steps: usize,
    /// Guidance. Where it is classifier-free, at most 1 runs without the negative prompt.
    pub guidance: f64,
    /// Classifier-free guidance of models that take `guidance` as an input.
    pub true_guidance: f64,
    /// Prompt i starts from the noise of seed + i.
    pub seed: u64,
    /// Height in pixels; the model's own where absent.
    pub height: Option<u32>,
    /// Width in pixels; the model's own where absent.
    pub width: Option<u32>,
    /// Tokens of the T5 prompt.
    pub max_sequence_length: usize,
    /// Prompts that run as one batch.
    pub batch: usize,
    /// The type forward calls compute in.
    pub dtype: ComputeType,
}

/// Prompts that are encoded once and run through each transformer to compare.
pub struct Sampling {
    trajectories: Trajectories,
    batch: usize,
}

impl Sampling {
    /// Encodes `prompts` on a device with the text encoders of `pipeline`; those that memory is not to hold go to a file in `folder`. The
    /// device has its memory back when this ends.
    ///
    /// # Errors
    /// When the size does not fit the model, or the encoders or the scheduler cannot be used.
    pub fn new(
        pipeline: &PipelineFolder,
        prompts: &[String],
        settings: Settings,
        (folder, device): (&Path, &ComputeDevice),
        progress: &Progress,
    ) -> Result<Self> {
        let size = pipeline.latent_size(settings.height, settings.width)?;
        let schedule = pipeline.schedule(settings.steps, size.tokens)?;
        let guidance = pipeline.guidance(settings.guidance, settings.true_guidance)?;
        let texts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let tokens = settings.max_sequence_length;
        let encoded = encoding(texts.len(), progress, |on_encoded| {
            let dtype = compute_type(settings.dtype);
            let encoders = pipeline.text_encoders(tokens)?.on(device, dtype);
            let encoders = encoders.for_prompts(texts.len(), device, dtype)?;
            Ok(Encoded::new(&encoders, &texts, dtype, folder, on_encoded)?)
        })?;
        device.release_unused()?;
        let trajectories = Trajectories::new(schedule, guidance, settings.seed, size, encoded);
        Ok(Self { trajectories, batch: settings.batch })
    }

    /// What a model makes of every prompt.
    ///
    /// # Errors
    /// When the model fails.
    pub fn denoised(
        &self,
        model: &dyn DiffusionModel,
        name: &'static str,
        progress: &Progress,
    ) -> Result<Denoised> {
        let _span = info_span!("sample").entered();
        denoised(&self.trajectories, model, 0..self.trajectories.prompts(), self.batch, name, progress)
    }
}

/// Encodes prompts, and the empty one for guidance, with progress. `encode` reports how much it has done, and of how much.
///
/// # Errors
/// When the encoders cannot be used.
pub(crate) fn encoding<T>(
    prompts: usize,
    progress: &Progress,
    encode: impl FnOnce(&mut dyn FnMut(u64, u64)) -> Result<T>,
) -> Result<T> {
    let mut shown = EncodingPhase::new(prompts, progress);
    let encoded = encode(&mut |done, all| shown.reached(done, all))?;
    shown.finish();
    Ok(encoded)
}

/// The progress of encoding prompts, and the empty one for guidance. Dropped before it is finished, it failed.
pub(crate) struct EncodingPhase {
    phase: PhaseProgress,
    /// Prompts, with the empty one.
    count: u64,
    reported: u64,
    _span: EnteredSpan,
}

impl EncodingPhase {
    /// Encoding of so many prompts begins.
    pub(crate) fn new(prompts: usize, progress: &Progress) -> Self {
        let span = info_span!("encode text").entered();
        let count = prompts as u64 + 1;
        Self { phase: progress.phase("encode", "prompts", count), count, reported: 0, _span: span }
    }
}

impl ShowEncoding for EncodingPhase {
    fn reached(&mut self, done: u64, all: u64) {
        let reached = self.count.saturating_mul(done) / all.max(1);
        self.phase.advance(reached.saturating_sub(self.reported));
        self.reported = self.reported.max(reached);
    }

    fn finish(self) {
        self.phase.finish();
    }
}

/// What a model makes of the prompts with these ids, `batch` of them in a call, with progress under `name`.
///
/// # Errors
/// When the model fails.
pub fn denoised(
    trajectories: &Trajectories,
    model: &dyn DiffusionModel,
    prompts: Range<u32>,
    batch: usize,
    name: &'static str,
    progress: &Progress,
) -> Result<Denoised> {
    let phase = progress.phase(name, "prompt steps", prompts.len() as u64 * trajectories.step_count() as u64);
    let denoised = trajectories.denoised(model, prompts, batch, &mut |count| {
        phase.advance(count);
        Ok(())
    })?;
    phase.finish();
    Ok(denoised)
}

/// Opens the pipeline that an argument names.
///
/// # Errors
/// When there is none, or it cannot be used.
pub(crate) fn open_pipeline(path: &Path) -> Result<PipelineFolder> {
    match not_a_pipeline(path) {
        Some(problem) => Err(Error::key("the pipeline", problem)),
        None => Ok(PipelineFolder::open(path)?),
    }
}

/// Loads a pipeline's transformer to compute in `dtype` on a device.
///
/// # Errors
/// When its configuration or its weights cannot be used.
pub fn load_transformer(
    pipeline: &PipelineFolder,
    dtype: DType,
    device: &ComputeDevice,
) -> Result<Box<dyn DiffusionModel>> {
    let _span = info_span!("load").entered();
    let weights = pipeline.transformer_weights()?;
    let mut transformer = pipeline.transformer_config().load(&weights, dtype)?;
    transformer.move_blocks(device);
    Ok(transformer)
}
