//! The operations of a picture's decoder as a device offers them. All of it is in f32: decoders overflow in f16.

use candle_core::{DType, Tensor};
use candle_nn::{Conv2dConfig, Module};

use super::{CpuOps, TextLinear, TextOps};
use crate::Result;
use crate::checkpoint::Weights;
use crate::model::Matrix;

/// diffusers' autoencoders add this to every variance.
pub(crate) const GROUP_EPSILON: f64 = 1e-6;

/// Queries of the attention among pixels that the processor scores at once: bounds the scores to this many rows.
const QUERIES: usize = 1024;

/// What each pixel of a picture has, or will have: its channels.
#[derive(Clone, Debug)]
pub(crate) struct Pixels {
    /// As the device lays them out: `1 x channels x height x width` on the processor, elsewhere a matrix `height * width x channels`.
    pub(crate) values: Matrix,
    pub(crate) height: usize,
    pub(crate) width: usize,
}

/// A convolution that keeps the size of a picture.
#[derive(Clone, Debug)]
pub(crate) struct Convolution {
    /// As [`PictureOps::convolution`] lays it out.
    pub(crate) weight: Matrix,
    /// A number for each channel that comes out.
    pub(crate) bias: Matrix,
    /// Pixels of a side of what one pixel is made of: 1 or 3.
    pub(crate) side: usize,
}

/// A norm over groups of channels, each with all pixels.
#[derive(Clone, Debug)]
pub(crate) struct GroupNorm {
    /// `channels`.
    pub(crate) weight: Matrix,
    pub(crate) bias: Matrix,
    pub(crate) groups: usize,
}

/// Attention of one head among all pixels.
#[derive(Clone, Debug)]
pub(crate) struct PixelAttention {
    pub(crate) norm: GroupNorm,
    pub(crate) q: TextLinear,
    pub(crate) k: TextLinear,
    pub(crate) v: TextLinear,
    pub(crate) out: TextLinear,
}

/// What decoders are computed with. Pixels are the device's own.
pub(crate) trait PictureOps: TextOps {
    /// Brings latents, `1 x channels x height x width`, to the device.
    fn import_pixels(&self, latents: &Tensor) -> Result<Pixels>;

    /// Brings a picture to the host, `1 x channels x height x width`.
    fn export_pixels(&self, picture: &Pixels) -> Result<Tensor>;

    /// Reads a convolution, `outputs x inputs x side x side`, from its file.
    fn convolution(&self, weights: &Weights, name: &str, sizes: [usize; 3]) -> Result<Convolution>;

    /// A convolution of a picture.
    fn convolved(&self, x: &Pixels, by: &Convolution) -> Result<Pixels>;

    /// One of three by three, of a picture of twice the height and width, in which each pixel became four.
    fn enlarged(&self, x: &Pixels, by: &Convolution) -> Result<Pixels>;

    /// A convolution of a picture, added to another one. The residual is nobody else's.
    fn add_convolved(&self, residual: Pixels, x: &Pixels, by: &Convolution) -> Result<Pixels>;

    /// Silu of a norm.
    fn normed_silu(&self, x: &Pixels, by: &GroupNorm) -> Result<Pixels>;

    /// A picture with what its pixels attend to added.
    fn attended(&self, x: Pixels, by: &PixelAttention) -> Result<Pixels>;
}

impl Pixels {
    fn host(&self) -> Result<&Tensor> {
        self.values.host()
    }

    /// A picture on the processor.
    fn of(tensor: Tensor) -> Result<Self> {
        let (_, _, height, width) = tensor.dims4()?;
        Ok(Self { values: tensor.into(), height, width })
    }
}

impl Convolution {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let config = Conv2dConfig { padding: self.side / 2, ..Conv2dConfig::default() };
        let (weight, bias) = (self.weight.host()?.clone(), self.bias.host()?.clone());
        Ok(candle_nn::Conv2d::new(weight, Some(bias), config).forward(x)?)
    }
}

impl GroupNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (weight, bias) = (self.weight.host()?.clone(), self.bias.host()?.clone());
        let channels = weight.dim(0)?;
        Ok(candle_nn::GroupNorm::new(weight, bias, channels, self.groups, GROUP_EPSILON)?.forward(x)?)
    }
}

/// In candle's operations.
impl PictureOps for CpuOps {
    fn import_pixels(&self, latents: &Tensor) -> Result<Pixels> {
        Pixels::of(latents.clone())
    }

    fn export_pixels(&self, picture: &Pixels) -> Result<Tensor> {
        Ok(picture.host()?.clone())
    }

    fn convolution(
        &self,
        weights: &Weights,
        name: &str,
        [outputs, inputs, side]: [usize; 3],
    ) -> Result<Convolution> {
        let shape = [outputs, inputs, side, side];
        let weight = weights.tensor(&format!("{name}.weight"), &shape, DType::F32)?;
        let bias = self.vector(weights, &format!("{name}.bias"), outputs)?;
        Ok(Convolution { weight: weight.into(), bias, side })
    }

    fn convolved(&self, x: &Pixels, by: &Convolution) -> Result<Pixels> {
        Pixels::of(by.forward(x.host()?)?)
    }

    fn enlarged(&self, x: &Pixels, by: &Convolution) -> Result<Pixels> {
        Pixels::of(by.forward(&x.host()?.upsample_nearest2d(2 * x.height, 2 * x.width)?)?)
    }

    fn add_convolved(&self, residual: Pixels, x: &Pixels, by: &Convolution) -> Result<Pixels> {
        Pixels::of((residual.host()? + by.forward(x.host()?)?)?)
    }

    fn normed_silu(&self, x: &Pixels, by: &GroupNorm) -> Result<Pixels> {
        Pixels::of(by.forward(x.host()?)?.silu()?)
    }

    fn attended(&self, x: Pixels, by: &PixelAttention) -> Result<Pixels> {
        let x = x.host()?;
        let (_, channels, height, width) = x.dims4()?;
        let pixels = height * width;
        let rows = by.norm.forward(x)?.reshape((channels, pixels))?.t()?.contiguous()?;
        let q = (by.q.forward(&rows)? / (channels as f64).sqrt())?;
        let (k, v) = (by.k.forward(&rows)?, by.v.forward(&rows)?);
        let mut mixed = Vec::with_capacity(pixels.div_ceil(QUERIES));
        for start in (0..pixels).step_by(QUERIES) {
            let scores = q.narrow(0, start, QUERIES.min(pixels - start))?.matmul(&k.t()?)?;
            mixed.push(candle_nn::ops::softmax_last_dim(&scores)?.matmul(&v)?);
        }
        let out = by.out.forward(&Tensor::cat(&mixed, 0)?)?;
        Pixels::of((out.t()?.reshape((1, channels, height, width))? + x)?)
    }
}
