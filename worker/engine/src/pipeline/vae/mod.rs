//! The autoencoder's decoder: from latents to a picture (diffusers' `AutoencoderKL`).

mod block;
mod config;
mod picture;

use std::path::Path;

use candle_core::{DType, Tensor};

use self::block::{ResnetBlock, Source};
use self::config::DecoderConfig;
pub use self::picture::Picture;
use super::LatentSize;
use crate::checkpoint::{Library, Weights};
#[cfg(feature = "cuda")]
use crate::cuda::MemoryPhase;
use crate::device::ComputeDevice;
use crate::model::ops::{Convolution, GroupNorm, ModelOps, PictureOps, PixelAttention, Pixels};
use crate::{Error, Result};

/// The decoder of a pipeline's autoencoder, in f32.
#[derive(Debug)]
pub struct Vae {
    config: DecoderConfig,
    ops: ModelOps,
    post_quant: Option<Convolution>,
    conv_in: Convolution,
    mid: Mid,
    ups: Vec<UpBlock>,
    norm_out: GroupNorm,
    conv_out: Convolution,
}

/// Two residual blocks at the smallest size, and attention between them where the configuration adds it.
#[derive(Debug)]
struct Mid {
    first: ResnetBlock,
    attention: Option<PixelAttention>,
    second: ResnetBlock,
}

/// Residual blocks at one size, and the convolution after doubling it.
#[derive(Debug)]
struct UpBlock {
    /// Channels of its widest tensor.
    channels: usize,
    resnets: Vec<ResnetBlock>,
    upsampler: Option<Convolution>,
}

impl Vae {
    pub(super) fn open(folder: &Path, device: &ComputeDevice) -> Result<Self> {
        Self::read(folder, device).map_err(while_decoding)
    }

    fn read(folder: &Path, device: &ComputeDevice) -> Result<Self> {
        let config = DecoderConfig::open(folder)?;
        let weights = Weights::open(folder, Library::Diffusers)?;
        let mut ops = ModelOps::default();
        ops.move_blocks(device, DType::F32);
        let source = Source { weights: &weights, ops: ops.picture(), groups: config.groups };
        let ([largest, smallest], latent) = (config.ends(), config.latent_channels);
        let post_quant = if config.with_post_quant {
            Some(source.conv("post_quant_conv", latent, latent, 1)?)
        } else {
            None
        };
        let conv_in = source.conv("decoder.conv_in", latent, largest, 3)?;
        let mid = Mid::read(&source, largest, config.with_attention)?;
        let ups = config.read_ups(&source)?;
        let norm_out = source.norm("decoder.conv_norm_out", smallest)?;
        let conv_out = source.conv("decoder.conv_out", smallest, 3, 3)?;
        Ok(Self { config, ops, post_quant, conv_in, mid, ups, norm_out, conv_out })
    }

    /// Bytes of a GPU's memory that the decoder in this folder and a picture of this size on its way take at most.
    pub(super) fn gpu_bytes(folder: &Path, size: LatentSize) -> Result<u64> {
        Ok(DecoderConfig::open(folder)?.gpu_bytes(size.height, size.width))
    }

    /// Decodes latents, `batch x channels x height x width`, as the pipeline leaves them: pictures of -1 to 1,
    /// `batch x 3 x pixels x pixels`, one at a time so that memory is that of one picture.
    ///
    /// # Errors
    /// When the latents have another shape, a tensor operation fails, or the device has no room.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let (batch, channels, _, _) = latents.dims4()?;
        if channels != self.config.latent_channels || batch == 0 {
            let found = latents.dims();
            return Err(Error::Argument(format!(
                "latents of shape {found:?} have not the {} channels to decode",
                self.config.latent_channels
            )));
        }
        let pictures = (0..batch).map(|i| self.decode_one(&latents.narrow(0, i, 1)?).map_err(while_decoding));
        Ok(Tensor::cat(&pictures.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// Bytes of the device's memory that decoding one picture of latents of this size takes besides the decoder. On the processor a
    /// convolution of three by three lays out nine numbers for each of its input's, and a residual block keeps its input, what it has normed,
    /// and what it puts out.
    pub fn decoding_bytes(&self, height: usize, width: usize) -> u64 {
        if self.ops.is_elsewhere() {
            return self.config.gpu_activation_bytes(height, width);
        }
        let (mut pixels, mut most) = ((height * width) as u64, 0);
        for up in &self.ups {
            most = most.max(pixels * up.channels as u64);
            if up.upsampler.is_some() {
                pixels *= 4;
                most = most.max(pixels * up.channels as u64);
            }
        }
        most * (9 + 4) * size_of::<f32>() as u64
    }

    fn decode_one(&self, latents: &Tensor) -> Result<Tensor> {
        let latents = latents.to_dtype(DType::F32)?;
        let latents = ((latents / self.config.scaling)? + self.config.shift)?;
        let ops = self.ops.picture();
        let mut x = ops.import_pixels(&latents)?;
        if let Some(post_quant) = &self.post_quant {
            x = ops.convolved(&x, post_quant)?;
        }
        x = self.mid.forward(ops, ops.convolved(&x, &self.conv_in)?)?;
        for up in &self.ups {
            x = up.forward(ops, x)?;
        }
        x = ops.normed_silu(&x, &self.norm_out)?;
        ops.export_pixels(&ops.convolved(&x, &self.conv_out)?)
    }
}

impl Mid {
    fn read(source: &Source<'_>, channels: usize, with_attention: bool) -> Result<Self> {
        let attention = if with_attention {
            Some(source.attention("decoder.mid_block.attentions.0", channels)?)
        } else {
            None
        };
        Ok(Self {
            first: ResnetBlock::read(source, "decoder.mid_block.resnets.0", channels, channels)?,
            attention,
            second: ResnetBlock::read(source, "decoder.mid_block.resnets.1", channels, channels)?,
        })
    }

    fn forward(&self, ops: &dyn PictureOps, x: Pixels) -> Result<Pixels> {
        let mut x = self.first.forward(ops, x)?;
        if let Some(attention) = &self.attention {
            x = ops.attended(x, attention)?;
        }
        self.second.forward(ops, x)
    }
}

impl UpBlock {
    fn forward(&self, ops: &dyn PictureOps, mut x: Pixels) -> Result<Pixels> {
        for resnet in &self.resnets {
            x = resnet.forward(ops, x)?;
        }
        match &self.upsampler {
            None => Ok(x),
            Some(conv) => ops.enlarged(&x, conv),
        }
    }
}

impl DecoderConfig {
    fn read_ups(&self, source: &Source<'_>) -> Result<Vec<UpBlock>> {
        let mut ups = Vec::with_capacity(self.channels.len());
        let mut inputs = self.channels[0];
        for (i, &outputs) in self.channels.iter().enumerate() {
            let prefix = format!("decoder.up_blocks.{i}");
            let widest = inputs.max(outputs);
            let mut resnets = Vec::new();
            for j in 0..self.resnets {
                resnets.push(ResnetBlock::read(source, &format!("{prefix}.resnets.{j}"), inputs, outputs)?);
                inputs = outputs;
            }
            let upsampler = if i + 1 < self.channels.len() {
                Some(source.conv(&format!("{prefix}.upsamplers.0.conv"), outputs, outputs, 3)?)
            } else {
                None
            };
            ups.push(UpBlock { channels: widest, resnets, upsampler });
        }
        Ok(ups)
    }
}

/// What a GPU has no room for was asked for by the decoder.
fn while_decoding(error: Error) -> Error {
    match error {
        #[cfg(feature = "cuda")]
        Error::Cuda(error) => error.during(MemoryPhase::Decoding).into(),
        error => error,
    }
}

#[cfg(test)]
mod tests;
