//! What goes into the blocks: latents as patches.

use candle_core::Tensor;

use super::Sd3Config;
use crate::Result;
use crate::model::loading::Loader;
use crate::model::ops::{CpuOps, LinearTensors};

/// Latents to image tokens: a linear on every patch, plus the patch's place in the picture.
#[derive(Clone, Debug)]
pub(super) struct PatchEmbed {
    projection: LinearTensors,
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
        Ok(Self {
            projection: LinearTensors::new(weight, bias),
            table: table.reshape((side, side, width))?,
            patch,
        })
    }

    /// `batch x channels x height x width` to `(batch * tokens) x width`. A picture smaller than the table takes its middle.
    pub(super) fn forward(&self, ops: &CpuOps, latents: &Tensor) -> Result<Tensor> {
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
