//! The size of a picture, in pixels, in latent pixels and in image tokens.

use super::keys::Keys;
use crate::architecture::LatentLayout;
use crate::{Error, Result};

/// The size of one picture's latents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentSize {
    /// Latent channels.
    pub channels: usize,
    /// Latent pixels from top to bottom.
    pub height: usize,
    /// Latent pixels from left to right.
    pub width: usize,
    /// Image tokens that the transformer makes of them: one a patch.
    pub tokens: usize,
}

impl LatentSize {
    /// The shape of a batch: `batch x channels x height x width`.
    pub fn shape(&self, batch: usize) -> [usize; 4] {
        [batch, self.channels, self.height, self.width]
    }
}

/// The parts of a transformer's and an autoencoder's configuration that decide about sizes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    layout: LatentLayout,
    /// Pixels to a latent pixel, along one side.
    scale: usize,
}

impl Geometry {
    /// Takes what the transformer's configuration and `vae/config.json` say, and checks that they fit together.
    pub(super) fn new(layout: LatentLayout, vae: &Keys) -> Result<Self> {
        let geometry = Self { layout, scale: read_scale(vae)? };
        if vae.size_or("latent_channels", 4)? != layout.channels {
            let (key, channels) = (layout.channels_key, layout.channels);
            let problem = format!("the transformer's {key} is {channels}: they must agree");
            return Err(vae.refuse("latent_channels", &problem));
        }
        Ok(geometry)
    }

    /// The size of the latents of a picture of `height x width` pixels; the model's own size where a side is not given.
    pub(super) fn latents(&self, height: Option<u32>, width: Option<u32>) -> Result<LatentSize> {
        let height = self.side("calibration.height", height)?;
        let width = self.side("calibration.width", width)?;
        let LatentLayout { channels, patch, .. } = self.layout;
        Ok(LatentSize { channels, height, width, tokens: (height / patch) * (width / patch) })
    }

    fn side(&self, key: &str, pixels: Option<u32>) -> Result<usize> {
        let multiple = self.scale * self.layout.patch;
        let pixels = pixels.map_or(self.layout.sample * self.scale, |pixels| pixels as usize);
        let largest = self.layout.max_patches * multiple;
        if pixels == 0 || !pixels.is_multiple_of(multiple) || pixels > largest {
            let problem = format!(
                "`{key}` is {pixels}: this model takes multiples of {multiple} up to {largest} pixels"
            );
            return Err(Error::Argument(problem));
        }
        Ok(pixels / self.scale)
    }
}

/// Each block of the autoencoder but the last halves the sides.
fn read_scale(vae: &Keys) -> Result<usize> {
    match vae.sizes_or("block_out_channels", vec![64])?.len() {
        blocks @ 1..=8 => Ok(1 << (blocks - 1)),
        _ => Err(vae.refuse("block_out_channels", "it may have 8 entries at most")),
    }
}
