//! Batches of prompts on their way from noise to final latents.

use std::ops::Range;

use candle_core::Tensor;
use obsdiff_proto::SiteId;

use super::{Conditionings, WeightedTap};
use crate::Result;
use crate::architecture::Guidance;
use crate::model::{DiffusionModel, Matrix, NoTap, Tap};
use crate::pipeline::{Conditioning, LatentSize, Schedule, Trajectory, noise};

/// Everything that the denoising trajectories of a list of prompts depend on but the model.
#[derive(Debug)]
pub struct Trajectories {
    schedule: Schedule,
    guidance: Guidance,
    seed: u64,
    size: LatentSize,
    conditionings: Box<dyn Conditionings>,
}

impl Trajectories {
    /// Trajectories of the prompts that `conditionings` stand for: prompt i starts from the noise of `seed` + i, and a classifier-free guidance of at most 1 runs
    /// without the negative prompt.
    pub fn new(
        schedule: Schedule,
        guidance: Guidance,
        seed: u64,
        size: LatentSize,
        conditionings: impl Conditionings + 'static,
    ) -> Self {
        Self { schedule, guidance, seed, size, conditionings: Box::new(conditionings) }
    }

    /// Steps T of a trajectory.
    pub fn step_count(&self) -> usize {
        self.schedule.steps()
    }

    /// How many prompts there are; their ids count from 0.
    pub fn prompts(&self) -> u32 {
        self.conditionings.prompts()
    }

    /// Denoises one batch of prompts, and sets the tap's weight to `alphas[k]` before step k; `on_passed` follows every block and every step,
    /// and may stop the batch by an error. Returns the final latents, `prompts x channels x height x width`.
    ///
    /// # Errors
    /// When the model, the tap or `on_passed` fails, or a prompt id is not of this list.
    pub fn denoise(
        &self,
        model: &dyn DiffusionModel,
        prompts: Range<u32>,
        alphas: &[f64],
        tap: &mut dyn WeightedTap,
        on_passed: &mut dyn FnMut(Passed) -> Result<()>,
    ) -> Result<Tensor> {
        Self::follow(self.start(prompts)?, model, alphas, tap, on_passed)
    }

    /// The same from where a trajectory is.
    pub(crate) fn follow(
        mut trajectory: Trajectory,
        model: &dyn DiffusionModel,
        alphas: &[f64],
        tap: &mut dyn WeightedTap,
        on_passed: &mut dyn FnMut(Passed) -> Result<()>,
    ) -> Result<Tensor> {
        for alpha in alphas {
            tap.set_alpha(*alpha);
            trajectory.step(model, &mut FollowedTap { tap: &mut *tap, on_passed: &mut *on_passed })?;
            tap.settle()?;
            on_passed(Passed::Step)?;
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

    /// The trajectory of a batch of prompts, before its first step.
    pub(crate) fn start(&self, prompts: Range<u32>) -> Result<Trajectory> {
        let encoded = self.conditionings.read(prompts.clone())?;
        let batch: Vec<&Conditioning> = encoded.iter().collect();
        let seeds = prompts.map(|id| self.seed.wrapping_add(u64::from(id)));
        let noise: Vec<Tensor> = seeds.map(|seed| noise(seed, &self.size.shape(1))).collect::<Result<_>>()?;
        let noise = Tensor::cat(&noise, 0)?;
        Trajectory::new(&self.schedule, self.guidance, &batch, self.conditionings.negative(), noise)
    }
}
/// How far a calibration has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// Through another block of a forward call. A whole step of a large model may take long.
    Block,
    /// Through a denoising step of a batch of prompts.
    Step,
}

/// A tap, and what follows every block.
struct FollowedTap<'a> {
    tap: &'a mut dyn WeightedTap,
    on_passed: &'a mut dyn FnMut(Passed) -> Result<()>,
}

impl Tap for FollowedTap<'_> {
    fn wants(&self, site: SiteId) -> bool {
        self.tap.wants(site)
    }

    fn observe(&mut self, site: SiteId, rows: &Matrix) -> Result<()> {
        self.tap.observe(site, rows)
    }

    fn block_passed(&mut self) -> Result<()> {
        (self.on_passed)(Passed::Block)
    }
}
