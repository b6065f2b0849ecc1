//! Batches of prompts on their way from noise to final latents.

use std::ops::Range;

use candle_core::{Device, Tensor};
use obsdiff_proto::CalibrationSpec;

use super::WeightedTap;
use crate::model::{DiffusionModel, NoTap};
use crate::pipeline::{Conditioning, Schedule, Trajectory, noise};
use crate::{Error, Result};

/// Everything that the denoising trajectories of a list of prompts depend on but the model.
pub struct Trajectories {
    schedule: Schedule,
    guidance: f64,
    seed: u64,
    /// Of the latents of one prompt: channels, height, width.
    latent_shape: [usize; 3],
    conditionings: Vec<Conditioning>,
    negative: Conditioning,
    device: Device,
}

impl Trajectories {
    /// Trajectories of the prompts whose conditionings are given, in the order of their ids.
    pub fn new(
        spec: &CalibrationSpec,
        schedule: Schedule,
        latent_shape: [usize; 3],
        conditionings: Vec<Conditioning>,
        negative: Conditioning,
    ) -> Self {
        let (guidance, seed) = (spec.guidance, spec.seed);
        Self { schedule, guidance, seed, latent_shape, conditionings, negative, device: Device::Cpu }
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

    /// Steps T of a trajectory.
    pub fn step_count(&self) -> usize {
        self.schedule.steps()
    }

    fn start(&self, prompts: Range<u32>) -> Result<Trajectory> {
        let batch: Vec<&Conditioning> = self
            .conditionings
            .get(prompts.start as usize..prompts.end as usize)
            .ok_or_else(|| {
                Error::Argument(format!("prompts {prompts:?} are not among {}", self.conditionings.len()))
            })?
            .iter()
            .collect();
        let noise: Vec<Tensor> =
            prompts.map(|id| noise(self.seed + u64::from(id), &self.latent_shape)).collect::<Result<_>>()?;
        let noise = Tensor::stack(&noise, 0)?.to_device(&self.device)?;
        Trajectory::new(&self.schedule, self.guidance, &batch, &self.negative, noise)
    }
}
