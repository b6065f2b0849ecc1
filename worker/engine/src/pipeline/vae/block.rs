//! The blocks that a decoder is made of.

use crate::Result;
use crate::checkpoint::Weights;
use crate::model::ops::{Convolution, GroupNorm, PictureOps, PixelAttention, Pixels, TextLinear};

/// Where blocks are read from, and what they are read for.
pub(super) struct Source<'a> {
    pub(super) weights: &'a Weights,
    pub(super) ops: &'a dyn PictureOps,
    pub(super) groups: usize,
}

impl Source<'_> {
    /// A convolution that keeps the size of the picture: `side` is 1 or 3.
    pub(super) fn conv(&self, name: &str, inputs: usize, outputs: usize, side: usize) -> Result<Convolution> {
        self.ops.convolution(self.weights, name, [outputs, inputs, side])
    }

    pub(super) fn norm(&self, name: &str, channels: usize) -> Result<GroupNorm> {
        let vector = |part: &str| self.ops.vector(self.weights, &format!("{name}.{part}"), channels);
        Ok(GroupNorm { weight: vector("weight")?, bias: vector("bias")?, groups: self.groups })
    }

    fn linear(&self, name: &str, channels: usize) -> Result<TextLinear> {
        let weight = self.ops.weight(self.weights, &format!("{name}.weight"), [channels, channels])?;
        Ok(TextLinear {
            weight,
            bias: Some(self.ops.vector(self.weights, &format!("{name}.bias"), channels)?),
        })
    }

    /// Attention of one head among all pixels.
    pub(super) fn attention(&self, name: &str, channels: usize) -> Result<PixelAttention> {
        let linear = |part: &str| self.linear(&format!("{name}.{part}"), channels);
        Ok(PixelAttention {
            norm: self.norm(&format!("{name}.group_norm"), channels)?,
            q: linear("to_q")?,
            k: linear("to_k")?,
            v: linear("to_v")?,
            out: linear("to_out.0")?,
        })
    }
}

/// Two convolutions, each after a norm and a silu, added to the input. Where the number of channels changes, the input goes
/// through a convolution of its own.
#[derive(Debug)]
pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Convolution,
    norm2: GroupNorm,
    conv2: Convolution,
    shortcut: Option<Convolution>,
}

impl ResnetBlock {
    pub(super) fn read(source: &Source<'_>, name: &str, inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Self {
            norm1: source.norm(&format!("{name}.norm1"), inputs)?,
            conv1: source.conv(&format!("{name}.conv1"), inputs, outputs, 3)?,
            norm2: source.norm(&format!("{name}.norm2"), outputs)?,
            conv2: source.conv(&format!("{name}.conv2"), outputs, outputs, 3)?,
            shortcut: if inputs == outputs {
                None
            } else {
                Some(source.conv(&format!("{name}.conv_shortcut"), inputs, outputs, 1)?)
            },
        })
    }

    pub(super) fn forward(&self, ops: &dyn PictureOps, x: Pixels) -> Result<Pixels> {
        let hidden = ops.convolved(&ops.normed_silu(&x, &self.norm1)?, &self.conv1)?;
        let normed = ops.normed_silu(&hidden, &self.norm2)?;
        // Before the last convolution only two pictures are left.
        drop(hidden);
        let residual = match &self.shortcut {
            Some(shortcut) => {
                let residual = ops.convolved(&x, shortcut)?;
                drop(x);
                residual
            }
            None => x,
        };
        ops.add_convolved(residual, &normed, &self.conv2)
    }
}
