//! Prompts denoised to their end, with what their latents were on the way.

use std::ops::Range;

use candle_core::Tensor;

use super::Trajectories;
use crate::Result;
use crate::model::{DiffusionModel, NoTap};

/// Prompts whose latents are kept after every step, at most: as many as pictures of them are shown.
const MOST_KEPT: usize = 4;

/// Bytes of latents that are kept on the way, at most, unless those of one prompt take more: a small part of any model whose latents
/// are as large.
const MOST_BYTES: usize = 64 << 20;

/// Prompts that a model has denoised.
#[derive(Clone, Debug)]
pub struct Denoised {
    /// Final latents, `prompts x channels x height x width`, in f32.
    pub latents: Tensor,
    /// The latents of the first prompts after each step, from the noisiest on, in the same form.
    pub steps: Vec<Tensor>,
}

impl Trajectories {
    /// Denoises the prompts with these ids with no site open, `batch` of them in a call. `on_step` gets how many prompts took a step,
    /// and may stop by an error.
    ///
    /// # Errors
    /// When the model or `on_step` fails, or there is no prompt.
    pub fn denoised(
        &self,
        model: &dyn DiffusionModel,
        prompts: Range<u32>,
        batch: usize,
        on_step: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Denoised> {
        let batch = batch.max(1);
        let mut finished = Vec::new();
        let mut on_the_way: Vec<Vec<Tensor>> = vec![Vec::new(); self.step_count()];
        for start in prompts.clone().step_by(batch) {
            let end = prompts.end.min(start.saturating_add(batch as u32));
            let mut trajectory = self.start(start..end)?;
            let bytes = trajectory.latents().elem_count() * size_of::<f32>() / (end - start) as usize;
            let kept = MOST_KEPT.min(MOST_BYTES / (bytes * self.step_count()).max(1)).max(1);
            let kept = kept.saturating_sub((start - prompts.start) as usize).min((end - start) as usize);
            for step in &mut on_the_way {
                trajectory.step(model, &mut NoTap)?;
                if kept > 0 {
                    step.push(trajectory.latents().narrow(0, 0, kept)?.contiguous()?);
                }
                on_step(u64::from(end - start))?;
            }
            finished.push(trajectory.latents().clone());
        }
        let steps = on_the_way.iter().map(|latents| Ok(Tensor::cat(latents, 0)?)).collect::<Result<_>>()?;
        Ok(Denoised { latents: Tensor::cat(&finished, 0)?, steps })
    }
}
