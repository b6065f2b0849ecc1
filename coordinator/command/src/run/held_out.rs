//! The pruned model against the dense one, on prompts that took no part in calibration.

use candle_core::Tensor;
use obsdiff_engine::calibrate::Trajectories;
use obsdiff_engine::export::HeldOutError;
use obsdiff_engine::model::DiffusionModel;

use super::Inputs;
use crate::Result;
use crate::progress::Progress;
use crate::sampling::{final_latents, relative_errors};

/// The error of `pruned` against `dense`, both `prompts x channels x height x width`.
///
/// # Errors
/// When their shapes differ.
pub(crate) fn error(dense: &Tensor, pruned: &Tensor) -> Result<HeldOutError> {
    let together = |latents: &Tensor| latents.flatten_all()?.unsqueeze(0);
    let whole = || Ok::<_, candle_core::Error>((together(dense)?, together(pruned)?));
    let (dense_whole, pruned_whole) = whole().map_err(obsdiff_engine::Error::from)?;
    Ok(HeldOutError {
        relative: relative_errors(&dense_whole, &pruned_whole)?.into_iter().sum(),
        per_prompt: relative_errors(dense, pruned)?,
    })
}

/// Final latents of the held-out prompts, in batches of the first shard's size, of `most` prompts or all that calibrate; nothing where
/// there are none.
pub(super) fn latents(
    model: &dyn DiffusionModel,
    trajectories: &Trajectories,
    (inputs, most): (&Inputs, u32),
    name: &'static str,
    progress: &Progress,
) -> Result<Option<Tensor>> {
    let _span = tracing::info_span!("held-out prompts").entered();
    let first = inputs.prompts.calibration.len() as u32;
    let prompts = first..trajectories.prompts();
    if prompts.is_empty() {
        return Ok(None);
    }
    let batch = if inputs.plan.shards.is_empty() { 1 } else { first.clamp(1, most.max(1)) as usize };
    final_latents(trajectories, model, prompts, batch, name, progress).map(Some)
}
