//! A batch of prompts on its way from noise to pictures.

use candle_core::{DType, Tensor};

use super::{Conditioning, Schedule};
use crate::architecture::Guidance;
use crate::model::{Denoise, DiffusionModel, Tap};
use crate::{Error, HOST, Result};

/// A batch of prompts denoised step by step, with classifier-free guidance where its scale is above 1 (Ho and Salimans,
/// arXiv 2207.12598).
///
/// Latents are kept in f32. The transformer may compute in another type, that of the conditionings.
#[derive(Clone, Debug)]
pub struct Trajectory {
    schedule: Schedule,
    guidance: Guidance,
    /// The transformer's inputs that stay the same. With guidance the negative comes first, once for each prompt.
    text: Tensor,
    pooled: Tensor,
    latents: Tensor,
    next: usize,
}

/// The inputs of a forward call, as [`Denoise`] borrows them.
#[derive(Clone, Debug)]
pub(crate) struct ForwardInputs {
    latents: Tensor,
    timestep: Tensor,
    text: Tensor,
    pooled: Tensor,
    guidance: Option<Tensor>,
}

impl ForwardInputs {
    pub(crate) fn call(&self) -> Denoise<'_> {
        Denoise {
            latents: &self.latents,
            timestep: &self.timestep,
            text: &self.text,
            pooled: &self.pooled,
            guidance: self.guidance.as_ref(),
        }
    }
}

impl Trajectory {
    /// Starts at `noise`, `prompts x channels x height x width`, for prompts that the `conditionings` stand for; all on one device
    /// and of one type. At a classifier-free guidance of at most 1 the `negative` is not used, as in diffusers.
    ///
    /// # Errors
    /// When there are no prompts, shapes do not agree, or the guidance is not finite.
    pub fn new(
        schedule: &Schedule,
        guidance: Guidance,
        conditionings: &[&Conditioning],
        negative: &Conditioning,
        noise: Tensor,
    ) -> Result<Self> {
        let prompts = conditionings.len();
        let (batch, _, _, _) = noise.dims4()?;
        if prompts == 0 || batch != prompts {
            return Err(Error::Argument(format!("{prompts} prompts for noise of shape {:?}", noise.dims())));
        }
        for scale in std::iter::once(guidance.classifier_free).chain(guidance.input) {
            if !scale.is_finite() {
                let problem = format!("`calibration.guidance` is {scale}: it must be a number");
                return Err(Error::Argument(problem));
            }
        }
        let same = |tensor: &Tensor, other: &Tensor| {
            tensor.dims() == other.dims() && tensor.dtype() == other.dtype()
        };
        let odd =
            |one: &&&Conditioning| !(same(&one.text, &negative.text) && same(&one.pooled, &negative.pooled));
        if let Some(odd) = conditionings.iter().find(odd) {
            let (found, expected) = ((&odd.text, &odd.pooled), (&negative.text, &negative.pooled));
            let problem =
                format!("a prompt's conditioning, {found:?}, is not like that of the negative, {expected:?}");
            return Err(Error::Argument(problem));
        }
        let negatives = std::iter::repeat_n(negative, (guidance.branches() - 1) * prompts);
        let all: Vec<&Conditioning> = negatives.chain(conditionings.iter().copied()).collect();
        Ok(Self {
            schedule: schedule.clone(),
            guidance,
            text: Tensor::stack(&all.iter().map(|one| &one.text).collect::<Vec<_>>(), 0)?,
            pooled: Tensor::stack(&all.iter().map(|one| &one.pooled).collect::<Vec<_>>(), 0)?,
            latents: noise.to_dtype(DType::F32)?,
            next: 0,
        })
    }

    /// The number of steps T of the whole trajectory.
    pub fn step_count(&self) -> usize {
        self.schedule.steps()
    }

    /// The step k that [`Trajectory::step`] takes next: T at the end.
    pub fn next_step(&self) -> usize {
        self.next
    }

    /// The latents now, `prompts x channels x height x width`, in f32.
    pub fn latents(&self) -> &Tensor {
        &self.latents
    }

    /// Takes the next step: one forward call, shown to `tap`, and Euler's step along the guided velocity.
    ///
    /// # Errors
    /// When the trajectory is at its end, or the model or the tap fails.
    pub fn step(&mut self, model: &dyn DiffusionModel, tap: &mut dyn Tap) -> Result<()> {
        let inputs = self.inputs()?;
        let velocity = tracing::info_span!("forward").in_scope(|| model.forward(&inputs.call(), tap))?;
        let velocity = self.guided(velocity)?;
        self.advance(&velocity)
    }

    /// The inputs of the next step's forward call.
    ///
    /// # Errors
    /// When the trajectory is at its end.
    pub(crate) fn inputs(&self) -> Result<ForwardInputs> {
        let Some(&timestep) = self.schedule.timesteps().get(self.next) else {
            return Err(Error::Argument(format!(
                "a trajectory of {} steps is at its end",
                self.step_count()
            )));
        };
        let latents = self.latents.to_dtype(self.text.dtype())?;
        let latents = Tensor::cat(&vec![&latents; self.guidance.branches()], 0)?;
        let pictures = latents.dim(0)?;
        let timestep = Tensor::full(timestep, pictures, &HOST)?;
        let input = self.guidance.input.map(|scale| Tensor::full(scale as f32, pictures, &HOST));
        let guidance = input.transpose()?;
        Ok(ForwardInputs {
            latents,
            timestep,
            text: self.text.clone(),
            pooled: self.pooled.clone(),
            guidance,
        })
    }

    /// Takes Euler's step along a guided velocity.
    pub(crate) fn advance(&mut self, velocity: &Tensor) -> Result<()> {
        self.latents = self.schedule.step(self.next, &self.latents, velocity)?;
        self.next += 1;
        Ok(())
    }

    /// negative + guidance * (prompt - negative) in f32, of a forward call's `velocity`: that of all negatives, then of all prompts.
    pub(crate) fn guided(&self, velocity: Tensor) -> Result<Tensor> {
        let velocity = velocity.to_dtype(DType::F32)?;
        if self.guidance.branches() == 1 {
            return Ok(velocity);
        }
        let prompts = self.latents.dim(0)?;
        let negative = velocity.narrow(0, 0, prompts)?;
        let prompt = velocity.narrow(0, prompts, prompts)?;
        Ok((&negative + ((prompt - &negative)? * self.guidance.classifier_free)?)?)
    }
}

#[cfg(test)]
mod tests;
