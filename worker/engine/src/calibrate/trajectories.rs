//! Batches of prompts on their way from noise to final latents.

use std::ops::Range;

use candle_core::{DType, Device, Tensor};

use super::WeightedTap;
use crate::model::{DiffusionModel, NoTap};
use crate::pipeline::{Conditioning, LatentSize, Schedule, Trajectory, noise};
use crate::{Error, Result};

/// Prompts as the transformer reads them.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Of each prompt, by id.
    pub prompts: Vec<Conditioning>,
    /// Of the empty prompt that guidance leads away from.
    pub negative: Conditioning,
}

impl Encoded {
    /// The same in another type, such as the one the transformer computes in.
    ///
    /// # Errors
    /// When a tensor cannot be converted.
    pub fn to(&self, dtype: DType, device: &Device) -> Result<Self> {
        let prompts = self.prompts.iter().map(|one| one.to(dtype, device)).collect::<Result<_>>()?;
        Ok(Self { prompts, negative: self.negative.to(dtype, device)? })
    }
}

/// Everything that the denoising trajectories of a list of prompts depend on but the model.
#[derive(Debug)]
pub struct Trajectories {
    schedule: Schedule,
    guidance: f64,
    seed: u64,
    size: LatentSize,
    encoded: Encoded,
}

impl Trajectories {
    /// Trajectories of encoded prompts: prompt i starts from the noise of `seed` + i, and a `guidance` of at most 1 runs without the
    /// negative prompt.
    pub fn new(schedule: Schedule, guidance: f64, seed: u64, size: LatentSize, encoded: Encoded) -> Self {
        Self { schedule, guidance, seed, size, encoded }
    }

    /// Steps T of a trajectory.
    pub fn step_count(&self) -> usize {
        self.schedule.steps()
    }

    /// How many prompts there are; their ids count from 0.
    pub fn prompts(&self) -> u32 {
        self.encoded.prompts.len() as u32
    }

    /// Denoises one batch of prompts, `alphas[k]` being told to the tap before step k; `on_step` follows every step and may stop the
    /// batch by an error. Returns the final latents, `prompts x channels x height x width`.
    ///
    /// # Errors
    /// When the model, the tap or `on_step` fails, or a prompt id is not of this list.
    pub fn denoise(
        &self,
        model: &dyn DiffusionModel,
        prompts: Range<u32>,
        alphas: &[f64],
        tap: &mut dyn WeightedTap,
        on_step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        let mut trajectory = self.start(prompts)?;
        for alpha in alphas {
            tap.set_alpha(*alpha);
            trajectory.step(model, tap)?;
            on_step()?;
        }
        Ok(trajectory.latents().clone())
    }

    /// Denoises one batch of prompts with no site open.
    ///
    /// # Errors
    /// As [`Trajectories::denoise`].
    pub fn final_latents(
        &self,
        model: &dyn DiffusionModel,
        prompts: Range<u32>,
        on_step: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        let mut trajectory = self.start(prompts)?;
        for _ in 0..trajectory.step_count() {
            trajectory.step(model, &mut NoTap)?;
            on_step()?;
        }
        Ok(trajectory.latents().clone())
    }

    fn start(&self, prompts: Range<u32>) -> Result<Trajectory> {
        let all = &self.encoded.prompts;
        let batch: Vec<&Conditioning> = all
            .get(prompts.start as usize..prompts.end as usize)
            .ok_or_else(|| Error::Argument(format!("prompts {prompts:?} are not among {}", all.len())))?
            .iter()
            .collect();
        let seeds = prompts.map(|id| self.seed.wrapping_add(u64::from(id)));
        let noise: Vec<Tensor> = seeds.map(|seed| noise(seed, &self.size.shape(1))).collect::<Result<_>>()?;
        let noise = Tensor::cat(&noise, 0)?.to_device(self.encoded.negative.text.device())?;
        Trajectory::new(&self.schedule, self.guidance, &batch, &self.encoded.negative, noise)
    }
}
