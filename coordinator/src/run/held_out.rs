//! The pruned model against the dense one, on prompts that took no part in calibration.

use candle_core::{DType, Tensor};
use obsdiff_engine::pruner::Pruner;
use serde::Serialize;

use super::Inputs;
use crate::Result;
use crate::progress::Progress;

/// The error of final latents on held-out prompts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct HeldOutError {
    /// ||pruned - dense|| / ||dense||, L2 over all prompts together: same prompts, same noise.
    pub relative: f64,
    /// The same of each prompt by itself.
    pub per_prompt: Vec<f64>,
}

impl HeldOutError {
    /// The error of `pruned` against `dense`, both `prompts x channels x height x width`.
    ///
    /// # Errors
    /// When their shapes differ.
    pub fn between(dense: &Tensor, pruned: &Tensor) -> Result<Self> {
        let per_prompt = (0..dense.dim(0).map_err(obsdiff_engine::Error::from)?)
            .map(|i| {
                let [dense, pruned] = [dense, pruned].map(|all| all.get(i).map_err(obsdiff_engine::Error::from));
                relative_l2(&dense?, &pruned?)
            })
            .collect::<Result<_>>()?;
        Ok(Self { relative: relative_l2(dense, pruned)?, per_prompt })
    }
}

/// ||b - a|| / ||a||, L2, of two tensors of the same shape.
///
/// # Errors
/// When their shapes differ.
pub fn relative_l2(a: &Tensor, b: &Tensor) -> Result<f64> {
    let norm = |x: &Tensor| x.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>().map(f64::sqrt);
    let relative = || Ok::<_, candle_core::Error>(norm(&(b - a)?)? / norm(a)?);
    Ok(relative().map_err(obsdiff_engine::Error::from)?)
}

/// Final latents of the held-out prompts, in batches of a shard's size; nothing where there are none.
pub(super) fn final_latents(
    pruner: &Pruner,
    inputs: &Inputs,
    progress: &Progress,
    name: &'static str,
) -> Result<Option<Tensor>> {
    let first = inputs.prompts.calibration.len() as u32;
    let end = first + inputs.prompts.held_out.len() as u32;
    if first == end {
        return Ok(None);
    }
    let batch = inputs.plan.shards.first().map_or(1, |shard| shard.prompts.len() as u32).max(1);
    let phase = progress.phase(name, "prompt steps", u64::from(end - first) * pruner.step_count() as u64);
    let mut latents = Vec::new();
    for start in (first..end).step_by(batch as usize) {
        let prompts = start..end.min(start + batch);
        let count = prompts.len() as u64;
        latents.push(pruner.final_latents(prompts, &mut || {
            phase.advance(count);
            Ok(())
        })?);
    }
    phase.finish();
    Ok(Some(Tensor::cat(&latents, 0).map_err(obsdiff_engine::Error::from)?))
}
