//! What a configuration says about a decoder, and what that takes of memory.

use std::path::Path;

use super::super::keys::Keys;
use crate::Result;
use crate::device::memory::{attended_pixels_bytes, convolved_bytes, enlarged_bytes, residual_bytes};

/// What the configuration says about the decoder.
#[derive(Debug)]
pub(super) struct DecoderConfig {
    /// Channels of its blocks, from the latents' end to the picture's.
    pub(super) channels: Vec<usize>,
    pub(super) latent_channels: usize,
    pub(super) resnets: usize,
    pub(super) with_attention: bool,
    pub(super) with_post_quant: bool,
    pub(super) groups: usize,
    pub(super) scaling: f64,
    pub(super) shift: f64,
}

impl DecoderConfig {
    /// Reads that of an autoencoder's folder.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let keys = Keys::open(&folder.join("config.json"))?;
        let config = Self::read(&keys)?;
        if config.scaling == 0.0 {
            return Err(keys.refuse("scaling_factor", "it must not be 0"));
        }
        if let Some(width) = config.channels.iter().find(|width| !width.is_multiple_of(config.groups)) {
            return Err(
                keys.refuse("norm_num_groups", &format!("it must divide {width} of `block_out_channels`"))
            );
        }
        Ok(config)
    }

    fn read(keys: &Keys) -> Result<Self> {
        let mut channels = keys.sizes_or("block_out_channels", vec![64])?;
        channels.reverse();
        match keys.text_or("act_fn", "silu")? {
            "silu" | "swish" => {}
            _ => return Err(keys.refuse("act_fn", "obsdiff supports \"silu\"")),
        }
        if keys.size_or("out_channels", 3)? != 3 {
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
            latent_channels: keys.size_or("latent_channels", 4)?,
            resnets: keys.size_or("layers_per_block", 1)? + 1,
            with_attention: keys.flag_or("mid_block_add_attention", true)?,
            with_post_quant: keys.flag_or("use_post_quant_conv", true)?,
            groups: keys.size_or("norm_num_groups", 32)?,
            scaling: keys.number_or("scaling_factor", 0.18215)?,
            shift: keys.number("shift_factor")?.unwrap_or(0.0),
        })
    }

    /// Channels of the first block and of the last one.
    pub(super) fn ends(&self) -> [usize; 2] {
        [self.channels[0], self.channels[self.channels.len() - 1]]
    }

    /// Bytes of a GPU's memory that the decoder takes at most while it decodes a picture of latents of this size.
    pub(super) fn gpu_bytes(&self, height: usize, width: usize) -> u64 {
        (self.parameters() * size_of::<f32>()) as u64 + self.gpu_activation_bytes(height, width)
    }

    /// What is there at the same time of the largest step, besides the weights.
    pub(super) fn gpu_activation_bytes(&self, height: usize, width: usize) -> u64 {
        let ([largest, smallest], mut pixels) = (self.ends(), height * width);
        let mut most = convolved_bytes(pixels, self.latent_channels, largest);
        if self.with_attention {
            most = most.max(attended_pixels_bytes(pixels, largest));
        }
        let mut inputs = largest;
        for (i, &outputs) in self.channels.iter().enumerate() {
            most = most
                .max(residual_bytes(pixels, inputs, outputs))
                .max(residual_bytes(pixels, outputs, outputs));
            if i + 1 < self.channels.len() {
                most = most.max(enlarged_bytes(pixels, outputs));
                pixels *= 4;
            }
            inputs = outputs;
        }
        most.max(residual_bytes(pixels, smallest, 3))
    }

    /// Weights of the decoder.
    fn parameters(&self) -> usize {
        let ([largest, smallest], latent) = (self.ends(), self.latent_channels);
        let conv = |inputs: usize, outputs: usize, side: usize| (side * side * inputs + 1) * outputs;
        let resnet = |inputs: usize, outputs: usize| {
            let shortcut = if inputs == outputs { 0 } else { conv(inputs, outputs, 1) };
            2 * (inputs + outputs) + conv(inputs, outputs, 3) + conv(outputs, outputs, 3) + shortcut
        };
        let post_quant = if self.with_post_quant { conv(latent, latent, 1) } else { 0 };
        let attention = if self.with_attention { 2 * largest + 4 * (largest + 1) * largest } else { 0 };
        let ends = conv(latent, largest, 3) + 2 * smallest + conv(smallest, 3, 3);
        let mut all = post_quant + ends + 2 * resnet(largest, largest) + attention;
        let mut inputs = largest;
        for (i, &outputs) in self.channels.iter().enumerate() {
            all += resnet(inputs, outputs) + (self.resnets - 1) * resnet(outputs, outputs);
            all += if i + 1 < self.channels.len() { conv(outputs, outputs, 3) } else { 0 };
            inputs = outputs;
        }
        all
    }
}
