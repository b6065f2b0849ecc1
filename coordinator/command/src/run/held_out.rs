//! The pruned model against the dense one, on prompts that took no part in calibration.

use candle_core::Tensor;
use obsdiff_engine::calibrate::{Denoised, Trajectories};
use obsdiff_engine::device::ComputeDevice;
use obsdiff_engine::export::PictureError;
use obsdiff_engine::model::DiffusionModel;
use obsdiff_engine::pipeline::{Picture, PipelineFolder};
use obsdiff_proto::ByteSize;

use super::{Inputs, available_memory};
use crate::Result;
use crate::picture::psnr;
use crate::progress::Progress;
use crate::sampling;

/// Pictures that are decoded at most: enough to see how far off they are, at a small part of what their latents cost.
const MOST_PICTURES: usize = 4;

/// The pictures of the first held-out prompts, for each of these latents of all of them, decoded on a device.
///
/// # Errors
/// When the decoder cannot be used, or takes more memory than a run was predicted to, or than the device has.
pub(crate) fn pictures(
    pipeline: &PipelineFolder,
    models: &[&Tensor],
    (device, predicted_peak): (&ComputeDevice, ByteSize),
) -> Result<Vec<Vec<Picture>>> {
    let _span = tracing::info_span!("decode pictures").entered();
    device.release_unused()?;
    let vae = pipeline.vae(device)?;
    let available = available_memory(device)?;
    for latents in models {
        let (_, _, height, width) = latents.dims4().map_err(obsdiff_engine::Error::from)?;
        let needed = ByteSize(vae.decoding_bytes(height, width));
        let problem = match available {
            Some(available) if needed > available => {
                format!("decoding one takes {needed}, but of the GPU {available} are free")
            }
            None if needed > predicted_peak => {
                format!("decoding one takes {needed}, more than all else that the job does")
            }
            _ => continue,
        };
        return Err(obsdiff_engine::Error::Argument(problem).into());
    }
    let decode = |latents: &&Tensor| Picture::of_batch(&vae.decode(&first(latents)?)?);
    Ok(models.iter().map(decode).collect::<obsdiff_engine::Result<_>>()?)
}

/// How far pictures are from the dense model's.
pub(crate) fn picture_error(dense: &[Picture], others: &[Picture]) -> PictureError {
    let noise = dense.iter().zip(others).filter_map(|(dense, other)| psnr(dense, other));
    let mean_psnr_decibels = mean(noise.filter(|decibels| decibels.is_finite()));
    PictureError { count: others.len(), mean_psnr_decibels }
}

/// The latents of the first prompts.
fn first(latents: &Tensor) -> candle_core::Result<Tensor> {
    latents.narrow(0, 0, latents.dim(0)?.min(MOST_PICTURES))
}

/// The mean of some numbers; none where there are none.
pub(crate) fn mean(numbers: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (count, sum) =
        numbers.into_iter().fold((0u32, 0.0), |(count, sum), number| (count + 1, sum + number));
    (count > 0).then(|| sum / f64::from(count))
}

/// What a model makes of the held-out prompts, in batches of the first shard's size, of `most` prompts or all that calibrate; nothing where
/// there are none.
pub(super) fn denoised(
    model: &dyn DiffusionModel,
    trajectories: &Trajectories,
    (inputs, most): (&Inputs, u32),
    name: &'static str,
    progress: &Progress,
) -> Result<Option<Denoised>> {
    let _span = tracing::info_span!("held-out prompts").entered();
    let first = inputs.prompts.calibration.len() as u32;
    let prompts = first..trajectories.prompts();
    if prompts.is_empty() {
        return Ok(None);
    }
    let batch = if inputs.plan.shards.is_empty() { 1 } else { first.clamp(1, most.max(1)) as usize };
    sampling::denoised(trajectories, model, prompts, batch, name, progress).map(Some)
}
