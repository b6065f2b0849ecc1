//! What a run measured: the pruned model's error, its own time and memory.

use candle_core::{DType, Tensor};
use obsdiff_proto::Method;
use serde::{Deserialize, Serialize};

use super::course::JobCourse;
use crate::Result;

/// What a run measured. Unlike the rest of a record it differs between two runs of the same job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The error of the pruned model; absent where no prompt was held out.
    pub held_out: Option<HeldOutError>,
    /// The same of the dense model pruned by magnitude, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
    /// How far the velocity was expected to be from the dense model's, before anything was pruned: the root of its mean squared
    /// relative change. Absent where linears were not surveyed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_velocity_error: Option<f64>,
    /// Seconds that the run took; after an interruption, those of the process that ended it. With workers of other processes, those of
    /// the coordinator, or of the worker that wrote the pipeline where the coordinator does not see it.
    pub seconds: f64,
    /// The part of these seconds that belongs to no phase.
    pub other_seconds: f64,
    /// The phases that took them, the longest first.
    pub phases: Vec<MeasuredPhase>,
    /// The largest resident set of the process, in bytes. Where workers are processes of their own, it is that of the one that wrote the
    /// pipeline. Unknown where the system does not report it.
    pub peak_memory_bytes: Option<u64>,
    /// What each package took, and what went wrong on the way; absent where the coordinator does not see the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub course: Option<JobCourse>,
}

/// The error of final latents on held-out prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HeldOutError {
    /// ||pruned - dense|| / ||dense||, L2 over all prompts together: same prompts, same noise.
    #[serde(rename = "relative_error")]
    pub relative: f64,
    /// The same of each prompt by itself.
    #[serde(rename = "prompt_relative_errors")]
    pub per_prompt: Vec<f64>,
    /// ||pruned - dense|| / ||dense|| of the latents after each denoising step, from the noisiest on, over the first of these prompts
    /// together; empty where the way was not compared.
    #[serde(rename = "step_relative_errors", default, skip_serializing_if = "Vec::is_empty")]
    pub per_step: Vec<f64>,
    /// How far the pictures of the first of these prompts are from the dense model's; absent where none was decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pictures: Option<PictureError>,
}

impl HeldOutError {
    /// The error of `pruned` against `dense`, final latents of the same prompts: `prompts x channels x height x width`.
    ///
    /// # Errors
    /// When their shapes differ.
    pub fn between(dense: &Tensor, pruned: &Tensor) -> Result<Self> {
        Ok(Self {
            relative: relative_error(dense, pruned)?,
            per_prompt: relative_errors(dense, pruned)?,
            per_step: Vec::new(),
            pictures: None,
        })
    }

    /// The same with the errors on the way, of latents of the same prompts after each step.
    ///
    /// # Errors
    /// When their shapes differ.
    pub fn along(self, dense: &[Tensor], pruned: &[Tensor]) -> Result<Self> {
        let per_step = dense.iter().zip(pruned).map(|(dense, pruned)| relative_error(dense, pruned));
        Ok(Self { per_step: per_step.collect::<Result<_>>()?, ..self })
    }
}

/// The L2 norm of the difference of two latents over that of the first, all prompts together.
fn relative_error(dense: &Tensor, pruned: &Tensor) -> Result<f64> {
    let together = |latents: &Tensor| latents.flatten_all()?.unsqueeze(0);
    Ok(relative_errors(&together(dense)?, &together(pruned)?)?.into_iter().sum())
}

/// For each prompt, the L2 norm of the difference of two latents over that of the first: ||pruned - dense|| / ||dense||.
fn relative_errors(dense: &Tensor, pruned: &Tensor) -> Result<Vec<f64>> {
    let norms = |t: &Tensor| t.to_dtype(DType::F64)?.flatten_from(1)?.sqr()?.sum(1)?.sqrt()?.to_vec1::<f64>();
    let difference = norms(&(pruned - dense)?)?;
    Ok(difference.into_iter().zip(norms(dense)?).map(|(error, norm)| error / norm).collect())
}

/// How far decoded pictures are from the dense model's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PictureError {
    /// Pictures that were decoded, of the first prompts.
    pub count: usize,
    /// The mean of their peak signal-to-noise ratios over those that differ; absent where all are equal.
    pub mean_psnr_decibels: Option<f64>,
}

/// What the simplest method makes of the same model: the smallest weights go, none is updated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// How weights, or heads and neurons, were chosen: `magnitude` or `l1`.
    pub method: Method,
    /// Weights of the linears that were pruned.
    pub weights: u64,
    /// Those of them that are zero.
    pub zeros: u64,
    /// The model pruned so against the dense one.
    pub held_out: HeldOutError,
}

/// The time that one kind of work took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredPhase {
    /// Its name.
    pub phase: String,
    /// How often it was begun.
    pub calls: u64,
    /// Seconds of the run's own thread.
    pub seconds: f64,
    /// Seconds of other threads, which ran at the same time.
    pub beside_seconds: f64,
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn errors_are_relative_to_the_dense_latents() {
        let tensor = |numbers: [f32; 4]| Tensor::from_slice(&numbers, (2, 1, 1, 2), &crate::HOST).unwrap();
        let error = HeldOutError::between(&tensor([3., 4., 0., 2.]), &tensor([3., 4., 1., 2.])).unwrap();
        assert_eq!(error.per_prompt, [0.0, 0.5]);
        assert!((error.relative - (1.0f64 / 29.0).sqrt()).abs() < 1e-12, "{}", error.relative);
        let halved = tensor([3., 4., 0., 1.]);
        let error = error.along(&[halved], &[tensor([3., 4., 0., 2.])]).unwrap();
        assert!((error.per_step[0] - (1.0f64 / 26.0).sqrt()).abs() < 1e-12, "{:?}", error.per_step);
        let other = Tensor::zeros((1, 1, 1, 2), DType::F32, &crate::HOST).unwrap();
        assert!(HeldOutError::between(&tensor([0.; 4]), &other).is_err());
    }
}
