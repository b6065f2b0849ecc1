//! What goes into the blocks: latents as patches, and the timestep with the pooled text as one vector.

use candle_core::{DType, Tensor};

use super::super::ops::{Linear, Ops};
use super::Sd3Config;
use super::inventory::TIMESTEP_WIDTH;
use super::loading::Loader;
use crate::Result;

/// Latents to image tokens: a linear on every patch, plus the patch's place in the picture.
#[derive(Clone, Debug)]
pub(super) struct PatchEmbed {
    projection: Linear,
    /// `side x side x width`: the sine-cosine table for the largest picture.
    table: Tensor,
    patch: usize,
}

impl PatchEmbed {
    pub(super) fn load(config: &Sd3Config, loader: &Loader<'_>) -> Result<Self> {
        let (width, patch, side) = (config.width(), config.patch_size, config.pos_embed_max_size);
        let weight = loader.tensor("pos_embed.proj.weight", &[width, config.in_channels, patch, patch])?;
        let weight = weight.reshape((width, config.in_channels * patch * patch))?;
        let bias = loader.tensor("pos_embed.proj.bias", &[width])?;
        let table = loader.tensor("pos_embed.pos_embed", &[1, side * side, width])?;
        Ok(Self { projection: Linear { weight, bias }, table: table.reshape((side, side, width))?, patch })
    }

    /// `batch x channels x height x width` to `(batch * tokens) x width`. A picture smaller than the table takes its middle.
    pub(super) fn forward(&self, ops: &Ops, latents: &Tensor) -> Result<Tensor> {
        let (batch, channels, height, width) = latents.dims4()?;
        let (rows, columns) = (height / self.patch, width / self.patch);
        let patches = latents
            .reshape(&[batch, channels, rows, self.patch, columns, self.patch])?
            .permute([0, 2, 4, 1, 3, 5])?
            .reshape((batch * rows * columns, channels * self.patch * self.patch))?;
        let side = self.table.dim(0)?;
        let place =
            self.table.narrow(0, (side - rows) / 2, rows)?.narrow(1, (side - columns) / 2, columns)?;
        let place = place.reshape((1, rows * columns, ()))?;
        let tokens = ops.linear(&patches, &self.projection)?;
        let placed = tokens.reshape((batch, rows * columns, ()))?.broadcast_add(&place)?;
        Ok(placed.flatten(0, 1)?)
    }
}

/// The timestep and the pooled text as one vector for each batch item.
#[derive(Clone, Debug)]
pub(super) struct TimeTextEmbed {
    timestep: [Linear; 2],
    text: [Linear; 2],
}

impl TimeTextEmbed {
    pub(super) fn load(config: &Sd3Config, loader: &Loader<'_>) -> Result<Self> {
        let width = config.width();
        let pair = |name: &str, n: usize| -> Result<[Linear; 2]> {
            let layer = |i: usize, n| loader.linear(&format!("time_text_embed.{name}.linear_{i}"), width, n);
            Ok([layer(1, n)?, layer(2, width)?])
        };
        Ok(Self {
            timestep: pair("timestep_embedder", TIMESTEP_WIDTH)?,
            text: pair("text_embedder", config.pooled_projection_dim)?,
        })
    }

    /// `batch` timesteps and `batch x pooled width` to `batch x width`.
    pub(super) fn forward(&self, ops: &Ops, timestep: &Tensor, pooled: &Tensor) -> Result<Tensor> {
        let wave = sinusoid(timestep)?.to_dtype(pooled.dtype())?;
        let both = (perceptron(ops, &self.timestep, &wave)? + perceptron(ops, &self.text, pooled)?)?;
        Ok(both)
    }
}

fn perceptron(ops: &Ops, [first, second]: &[Linear; 2], x: &Tensor) -> Result<Tensor> {
    ops.linear(&ops.linear(x, first)?.silu()?, second)
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
    let frequencies = Tensor::from_vec((0..half).map(frequency).collect(), (1, half), timestep.device())?;
    let angles = timestep.to_dtype(DType::F32)?.unsqueeze(1)?.broadcast_mul(&frequencies)?;
    Ok(Tensor::cat(&[angles.cos()?, angles.sin()?], 1)?)
}
