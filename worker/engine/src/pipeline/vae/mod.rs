//! The autoencoder's decoder: from latents to a picture (diffusers' `AutoencoderKL`).

mod block;
mod picture;

use std::path::Path;

use candle_core::{Device, Tensor};

use self::block::{Conv, GroupNorm, MidAttention, ResnetBlock, Source};
pub use self::picture::Picture;
use super::keys::Keys;
use crate::checkpoint::{Library, Weights};
use crate::{Error, Result};

/// The decoder of a pipeline's autoencoder, in f32.
#[derive(Debug)]
pub struct Vae {
    scaling: f64,
    shift: f64,
    channels: usize,
    device: Device,
    post_quant: Option<Conv>,
    conv_in: Conv,
    mid: Mid,
    ups: Vec<UpBlock>,
    norm_out: GroupNorm,
    conv_out: Conv,
}

/// Two residual blocks at the smallest size, and attention between them where the configuration adds it.
#[derive(Debug)]
struct Mid {
    first: ResnetBlock,
    attention: Option<MidAttention>,
    second: ResnetBlock,
}

/// Residual blocks at one size, and the convolution after doubling it.
#[derive(Debug)]
struct UpBlock {
    /// Channels of its widest tensor.
    channels: usize,
    resnets: Vec<ResnetBlock>,
    upsampler: Option<Conv>,
}

/// What the configuration says about the decoder.
struct DecoderConfig {
    /// Channels of its blocks, from the latents' end to the picture's.
    channels: Vec<usize>,
    latent_channels: usize,
    resnets: usize,
    with_attention: bool,
    with_post_quant: bool,
}

impl Vae {
    pub(super) fn open(folder: &Path, device: &Device) -> Result<Self> {
        let keys = Keys::open(&folder.join("config.json"))?;
        let config = DecoderConfig::read(&keys)?;
        let scaling = keys.number("scaling_factor")?.unwrap_or(0.18215);
        if scaling == 0.0 {
            return Err(keys.refuse("scaling_factor", "it must not be 0"));
        }
        let groups = keys.size("norm_num_groups")?.unwrap_or(32);
        if let Some(width) = config.channels.iter().find(|width| !width.is_multiple_of(groups)) {
            return Err(
                keys.refuse("norm_num_groups", &format!("it must divide {width} of `block_out_channels`"))
            );
        }
        let weights = Weights::open(folder, Library::Diffusers)?;
        let source = Source { weights: &weights, device, groups };
        let (largest, smallest) = (config.channels[0], config.channels[config.channels.len() - 1]);
        let latent = config.latent_channels;
        Ok(Self {
            scaling,
            shift: keys.number("shift_factor")?.unwrap_or(0.0),
            channels: latent,
            device: device.clone(),
            post_quant: if config.with_post_quant {
                Some(source.conv("post_quant_conv", latent, latent, 1)?)
            } else {
                None
            },
            conv_in: source.conv("decoder.conv_in", latent, largest, 3)?,
            mid: Mid::read(&source, largest, config.with_attention)?,
            ups: config.read_ups(&source)?,
            norm_out: source.norm("decoder.conv_norm_out", smallest)?,
            conv_out: source.conv("decoder.conv_out", smallest, 3, 3)?,
        })
    }

    /// Decodes latents, `batch x channels x height x width`, as the pipeline leaves them: pictures of -1 to 1,
    /// `batch x 3 x pixels x pixels`, one at a time so that memory is that of one picture.
    ///
    /// # Errors
    /// When the latents have another shape, or a tensor operation fails.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let (batch, channels, _, _) = latents.dims4()?;
        if channels != self.channels || batch == 0 {
            let found = latents.dims();
            return Err(Error::Argument(format!(
                "latents of shape {found:?} have not the {} channels to decode",
                self.channels
            )));
        }
        let pictures = (0..batch).map(|i| self.decode_one(&latents.narrow(0, i, 1)?));
        Ok(Tensor::cat(&pictures.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// Bytes that decoding one picture of latents of this size takes besides the decoder: a convolution of three by three lays out nine
    /// numbers for each of its input's, and a residual block keeps its input, what it has normed, and what it puts out.
    pub fn decoding_bytes(&self, height: usize, width: usize) -> u64 {
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
        let latents = latents.to_device(&self.device)?.to_dtype(candle_core::DType::F32)?;
        let mut x = ((latents / self.scaling)? + self.shift)?;
        if let Some(post_quant) = &self.post_quant {
            x = post_quant.forward(&x)?;
        }
        x = self.mid.forward(&self.conv_in.forward(&x)?)?;
        for up in &self.ups {
            x = up.forward(&x)?;
        }
        self.conv_out.forward(&self.norm_out.forward(&x)?.silu()?)
    }
}

impl Mid {
    fn read(source: &Source<'_>, channels: usize, with_attention: bool) -> Result<Self> {
        let attention = if with_attention {
            Some(MidAttention::read(source, "decoder.mid_block.attentions.0", channels)?)
        } else {
            None
        };
        Ok(Self {
            first: ResnetBlock::read(source, "decoder.mid_block.resnets.0", channels, channels)?,
            attention,
            second: ResnetBlock::read(source, "decoder.mid_block.resnets.1", channels, channels)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = self.first.forward(x)?;
        if let Some(attention) = &self.attention {
            x = attention.forward(&x)?;
        }
        self.second.forward(&x)
    }
}

impl UpBlock {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for resnet in &self.resnets {
            x = resnet.forward(&x)?;
        }
        match &self.upsampler {
            None => Ok(x),
            Some(conv) => {
                let (_, _, height, width) = x.dims4()?;
                conv.forward(&x.upsample_nearest2d(2 * height, 2 * width)?)
            }
        }
    }
}

impl DecoderConfig {
    fn read(keys: &Keys) -> Result<Self> {
        let mut channels = keys.sizes("block_out_channels")?.unwrap_or_else(|| vec![64]);
        channels.reverse();
        match keys.text("act_fn")?.unwrap_or("silu") {
            "silu" | "swish" => {}
            _ => return Err(keys.refuse("act_fn", "obsdiff supports \"silu\"")),
        }
        if keys.size("out_channels")?.unwrap_or(3) != 3 {
            return Err(keys.refuse("out_channels", "a picture has 3"));
        }
        if let Some(types) = keys.value("up_block_types") {
            let known = |types: &Vec<serde_json::Value>| {
                types.len() == channels.len() && types.iter().all(|name| name == "UpDecoderBlock2D")
            };
            if !types.as_array().is_some_and(known) {
                let allowed = "it must name \"UpDecoderBlock2D\" once for each of `block_out_channels`";
                return Err(keys.refuse("up_block_types", allowed));
            }
        }
        Ok(Self {
            channels,
            latent_channels: keys.size("latent_channels")?.unwrap_or(4),
            resnets: keys.size("layers_per_block")?.unwrap_or(1) + 1,
            with_attention: keys.flag("mid_block_add_attention")?.unwrap_or(true),
            with_post_quant: keys.flag("use_post_quant_conv")?.unwrap_or(true),
        })
    }

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

#[cfg(test)]
mod tests;
