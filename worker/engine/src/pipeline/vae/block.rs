//! The blocks that an autoencoder is made of, on `1 x channels x height x width`.

use candle_core::{DType, Device, Module, Tensor};
use candle_nn::Conv2dConfig;

use crate::Result;
use crate::checkpoint::Weights;

/// diffusers' autoencoders use this one everywhere.
const EPSILON: f64 = 1e-6;

/// Queries of the attention that are scored at once: bounds the scores to this many rows.
const QUERIES: usize = 1024;

/// Where blocks are read from.
pub(super) struct Source<'a> {
    pub(super) weights: &'a Weights,
    pub(super) device: &'a Device,
    pub(super) groups: usize,
}

impl Source<'_> {
    fn tensor(&self, name: &str, part: &str, shape: &[usize]) -> Result<Tensor> {
        self.weights.tensor(&format!("{name}.{part}"), shape, DType::F32, self.device)
    }

    /// A convolution that keeps the size of the picture: `kernel` is 1 or 3.
    pub(super) fn conv(&self, name: &str, inputs: usize, outputs: usize, kernel: usize) -> Result<Conv> {
        let weight = self.tensor(name, "weight", &[outputs, inputs, kernel, kernel])?;
        let config = Conv2dConfig { padding: kernel / 2, ..Conv2dConfig::default() };
        Ok(Conv(candle_nn::Conv2d::new(weight, Some(self.tensor(name, "bias", &[outputs])?), config)))
    }

    pub(super) fn norm(&self, name: &str, channels: usize) -> Result<GroupNorm> {
        let (weight, bias) =
            (self.tensor(name, "weight", &[channels])?, self.tensor(name, "bias", &[channels])?);
        Ok(GroupNorm(candle_nn::GroupNorm::new(weight, bias, channels, self.groups, EPSILON)?))
    }

    fn linear(&self, name: &str, channels: usize) -> Result<candle_nn::Linear> {
        let weight = self.tensor(name, "weight", &[channels, channels])?;
        Ok(candle_nn::Linear::new(weight, Some(self.tensor(name, "bias", &[channels])?)))
    }
}

/// A convolution that keeps the size of the picture.
#[derive(Debug)]
pub(super) struct Conv(candle_nn::Conv2d);

impl Conv {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.0.forward(x)?)
    }
}

/// A norm over groups of channels.
#[derive(Debug)]
pub(super) struct GroupNorm(candle_nn::GroupNorm);

impl GroupNorm {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        Ok(self.0.forward(x)?)
    }
}

/// Two convolutions, each after a norm and a silu, added to the input. Where the number of channels changes, the input goes
/// through a convolution of its own.
#[derive(Debug)]
pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
    shortcut: Option<Conv>,
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

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let hidden = self.conv1.forward(&self.norm1.forward(x)?.silu()?)?;
        let hidden = self.conv2.forward(&self.norm2.forward(&hidden)?.silu()?)?;
        Ok(match &self.shortcut {
            Some(shortcut) => (shortcut.forward(x)? + hidden)?,
            None => (x + hidden)?,
        })
    }
}

/// Attention of one head among all pixels, added to the input.
#[derive(Debug)]
pub(super) struct MidAttention {
    norm: GroupNorm,
    q: candle_nn::Linear,
    k: candle_nn::Linear,
    v: candle_nn::Linear,
    out: candle_nn::Linear,
}

impl MidAttention {
    pub(super) fn read(source: &Source<'_>, name: &str, channels: usize) -> Result<Self> {
        let linear = |part: &str| source.linear(&format!("{name}.{part}"), channels);
        Ok(Self {
            norm: source.norm(&format!("{name}.group_norm"), channels)?,
            q: linear("to_q")?,
            k: linear("to_k")?,
            v: linear("to_v")?,
            out: linear("to_out.0")?,
        })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, channels, height, width) = x.dims4()?;
        let pixels = height * width;
        let rows = self.norm.forward(x)?.reshape((channels, pixels))?.t()?.contiguous()?;
        let q = (self.q.forward(&rows)? / (channels as f64).sqrt())?;
        let (k, v) = (self.k.forward(&rows)?, self.v.forward(&rows)?);
        let mut mixed = Vec::with_capacity(pixels.div_ceil(QUERIES));
        for start in (0..pixels).step_by(QUERIES) {
            let scores = q.narrow(0, start, QUERIES.min(pixels - start))?.matmul(&k.t()?)?;
            mixed.push(candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?);
        }
        let out = self.out.forward(&Tensor::cat(&mixed, 0)?)?;
        Ok((out.t()?.reshape((1, channels, height, width))? + x)?)
    }
}
