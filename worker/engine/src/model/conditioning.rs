//! The timestep, the guidance and the pooled text as one vector, as diffusers' `time_text_embed` makes it.

use candle_core::{DType, Tensor};

use super::Matrix;
use super::inputs::Importer;
use super::loading::Loader;
use super::ops::{BlockOps, LinearTensors};
use crate::{HOST, Result};

/// Width of the sinusoid that a timestep becomes.
pub(crate) const TIMESTEP_WIDTH: usize = 256;

/// The conditioning vector's embedders, two linears each.
#[derive(Clone, Debug)]
pub(crate) struct TimeTextEmbed {
    timestep: [LinearTensors; 2],
    /// Of models that were distilled from guided ones.
    guidance: Option<[LinearTensors; 2]>,
    text: [LinearTensors; 2],
}

impl TimeTextEmbed {
    pub(crate) fn load(width: usize, pooled: usize, guided: bool, loader: &Loader<'_>) -> Result<Self> {
        let pair = |name: &str, n: usize| -> Result<[LinearTensors; 2]> {
            let layer = |i: usize, n| loader.linear(&format!("time_text_embed.{name}.linear_{i}"), width, n);
            Ok([layer(1, n)?, layer(2, width)?])
        };
        Ok(Self {
            timestep: pair("timestep_embedder", TIMESTEP_WIDTH)?,
            guidance: guided.then(|| pair("guidance_embedder", TIMESTEP_WIDTH)).transpose()?,
            text: pair("text_embedder", pooled)?,
        })
    }

    /// Whether a tensor is of the guidance's embedder.
    pub(crate) fn is_of_guidance(tensor: &str) -> bool {
        tensor.starts_with("time_text_embed.guidance_embedder.")
    }

    /// Every tensor that a checkpoint holds for it, with its shape.
    pub(crate) fn shapes(width: usize, pooled: usize, guided: bool) -> Vec<(String, Vec<usize>)> {
        let guidance = guided.then_some(("guidance_embedder", TIMESTEP_WIDTH));
        let pairs = [Some(("timestep_embedder", TIMESTEP_WIDTH)), guidance, Some(("text_embedder", pooled))];
        let linears = pairs.into_iter().flatten().flat_map(|(name, n)| [(name, 1, n), (name, 2, width)]);
        let tensors = linears.flat_map(|(name, i, n)| {
            let name = format!("time_text_embed.{name}.linear_{i}");
            [(format!("{name}.weight"), vec![width, n]), (format!("{name}.bias"), vec![width])]
        });
        tensors.collect()
    }

    /// SiLU of what `batch` timesteps (and as many thousandfold guidances, where the model takes them) and `batch x pooled width` become:
    /// `batch x width`, which all blocks read.
    pub(crate) fn forward(
        &self,
        inputs: Importer<'_>,
        timestep: &Tensor,
        guidance: Option<&Tensor>,
        pooled: &Tensor,
    ) -> Result<Matrix> {
        let ops = inputs.ops.device();
        let wave = |numbers: &Tensor| -> Result<Matrix> {
            ops.import(sinusoid(numbers)?.to_dtype(inputs.dtype)?.into())
        };
        let mut time = perceptron(ops, &self.timestep, &wave(timestep)?)?;
        if let Some((embedder, guidance)) = self.guidance.as_ref().zip(guidance) {
            time = ops.add_rows(time, &perceptron(ops, embedder, &wave(guidance)?)?)?;
        }
        ops.silu(ops.add_rows(time, &perceptron(ops, &self.text, &inputs.pooled(pooled)?)?)?)
    }
}

fn perceptron(ops: &dyn BlockOps, [first, second]: &[LinearTensors; 2], x: &Matrix) -> Result<Matrix> {
    ops.linear(&ops.silu(ops.linear(x, first)?)?, second)
}

/// Of the 128 frequencies, those that PyTorch's vectorised expf rounds up where the nearest f32 lies below. A unit in their last place
/// turns the angle of timestep 1000 by 3e-5: the largest difference to diffusers there would be in a forward call.
const ROUNDED_UP: [usize; 3] = [13, 44, 119];

/// Cosines, then sines, of t / 10000^(i / 128), in f32.
fn sinusoid(timestep: &Tensor) -> Result<Tensor> {
    let half = TIMESTEP_WIDTH / 2;
    let frequency = |i: usize| {
        let nearest = (-(10000f32.ln()) * i as f32 / half as f32).exp();
        if ROUNDED_UP.contains(&i) { nearest.next_up() } else { nearest }
    };
    let frequencies = Tensor::from_vec((0..half).map(frequency).collect(), (1, half), &HOST)?;
    let angles = timestep.to_dtype(DType::F32)?.unsqueeze(1)?.broadcast_mul(&frequencies)?;
    Ok(Tensor::cat(&[angles.cos()?, angles.sin()?], 1)?)
}
