//! What goes into the blocks: latents as patches.

use candle_core::Tensor;

use super::Sd3Config;
use crate::Result;
use crate::model::Matrix;
use crate::model::kept::Kept;
use crate::model::loading::Loader;
use crate::model::ops::{BlockOps, LinearTensors};

/// Latents to image tokens: a linear on every patch, plus the patch's place in the picture.
#[derive(Clone, Debug)]
pub(super) struct PatchEmbed {
    projection: LinearTensors,
    /// `side x side x width`: the sine-cosine table for the largest picture.
    table: Tensor,
    patch: usize,
    /// The part of the table for pictures of so many rows and columns of tokens.
    places: Kept<(usize, usize), Matrix>,
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
            places: Kept::default(),
        })
    }

    /// `batch x channels x height x width` to `(batch * tokens) x width`. A picture smaller than the table takes its middle.
    pub(super) fn forward(&self, ops: &dyn BlockOps, latents: &Tensor) -> Result<Matrix> {
        let (batch, channels, height, width) = latents.dims4()?;
        let (rows, columns) = (height / self.patch, width / self.patch);
        let patches = latents
            .reshape(&[batch, channels, rows, self.patch, columns, self.patch])?
            .permute([0, 2, 4, 1, 3, 5])?
            .reshape((batch * rows * columns, channels * self.patch * self.patch))?;
        let places = || {
            let side = self.table.dim(0)?;
            let (top, left) = ((side - rows) / 2, (side - columns) / 2);
            let middle = self.table.narrow(0, top, rows)?.narrow(1, left, columns)?;
            ops.import(middle.reshape((rows * columns, ()))?.into())
        };
        let places = self.places.get((rows, columns), places)?;
        ops.add_rows(ops.linear(&ops.import(patches.into())?, &self.projection)?, &places)
    }

    /// Has the next call bring its places to where it computes.
    pub(super) fn moved(&mut self) {
        self.places = Kept::default();
    }
}
