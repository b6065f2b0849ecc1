//! The operations of a picture's decoder on a GPU, in f32. A convolution is one product for as many pixels as fit a buffer of a fixed size, in
//! which what each is made of is laid out.
//!
//! Nothing here waits for the GPU but what brings a picture to the host.

use candle_core::{DType, Tensor};

use super::kernels::Launch;
use super::matrix::{CudaMatrix, NumberType};
use super::ops::{CudaOps, into_gpu, on_gpu};
use super::products::{Operand, ProductBatch, ProductSizes};
use crate::checkpoint::Weights;
use crate::device::memory::{PIXELS_OF_PART, laid_out_pixels};
use crate::device::transfers::TransferKind;
use crate::model::ops::{
    Convolution, GROUP_EPSILON, GroupNorm, PictureOps, PixelAttention, Pixels, TextOps, WrittenIn,
};
use crate::{Error, Result};

impl PictureOps for CudaOps {
    fn import_pixels(&self, latents: &Tensor) -> Result<Pixels> {
        let (_, _, height, width) = latents.dims4()?;
        let rows = latents.squeeze(0)?.flatten_from(1)?.t()?.to_dtype(DType::F32)?;
        let values = CudaMatrix::upload(&self.device, TransferKind::Inputs, &rows)?.into();
        Ok(Pixels { values, height, width })
    }

    fn export_pixels(&self, picture: &Pixels) -> Result<Tensor> {
        let Pixels { values, height, width } = picture;
        let rows = on_gpu(values)?.to_host(TransferKind::Pictures)?;
        Ok(rows.t()?.contiguous()?.reshape((1, (), *height, *width))?)
    }

    fn convolution(
        &self,
        weights: &Weights,
        name: &str,
        [outputs, inputs, side]: [usize; 3],
    ) -> Result<Convolution> {
        let shape = [outputs, inputs, side, side];
        let weight = weights.tensor(&format!("{name}.weight"), &shape, DType::F32)?;
        // As pixels are laid out: the channels of each of them together.
        let weight = weight.permute((0, 2, 3, 1))?.contiguous()?.reshape((outputs, side * side * inputs))?;
        let weight = CudaMatrix::upload(&self.device, TransferKind::Weights, &weight)?.into();
        Ok(Convolution { weight, bias: self.vector(weights, &format!("{name}.bias"), outputs)?, side })
    }

    fn convolved(&self, x: &Pixels, by: &Convolution) -> Result<Pixels> {
        self.convolution_of(x, by, 1)
    }

    fn enlarged(&self, x: &Pixels, by: &Convolution) -> Result<Pixels> {
        self.convolution_of(x, by, 2)
    }

    fn add_convolved(&self, residual: Pixels, x: &Pixels, by: &Convolution) -> Result<Pixels> {
        let Pixels { values, height, width } = residual;
        let mut sum = into_gpu(values)?.unshared()?;
        if (height, width) != (x.height, x.width) {
            let problem = format!("{} x {} pixels are not added to {height} x {width}", x.height, x.width);
            return Err(Error::Argument(problem));
        }
        self.convolve(x, by, 1, true, &mut sum)?;
        Ok(Pixels { values: sum.into(), height, width })
    }

    fn normed_silu(&self, x: &Pixels, by: &GroupNorm) -> Result<Pixels> {
        let values = self.normed(on_gpu(&x.values)?, by, true)?.into();
        Ok(Pixels { values, height: x.height, width: x.width })
    }

    fn attended(&self, x: Pixels, by: &PixelAttention) -> Result<Pixels> {
        let Pixels { values, height, width } = x;
        let normed = self.normed(on_gpu(&values)?, &by.norm, false)?.into();
        let of = |layer| self.linear(&normed, layer, WrittenIn::F32);
        let [q, k, v] = [of(&by.q)?, of(&by.k)?, of(&by.v)?];
        drop(normed);
        let (q, k, v) = (on_gpu(&q)?, on_gpu(&k)?, on_gpu(&v)?);
        let mut mixed = CudaMatrix::new(&self.device, NumberType::F32, q.rows(), q.columns())?;
        self.attend(q, 0..q.rows(), [k, v], 1, &mut mixed)?;
        Ok(Pixels { values: self.add_linear(values, &mixed.into(), &by.out)?, height, width })
    }
}

impl CudaOps {
    /// A convolution of a picture whose pixels each count `scale * scale` times.
    fn convolution_of(&self, x: &Pixels, by: &Convolution, scale: usize) -> Result<Pixels> {
        let (height, width) = (scale * x.height, scale * x.width);
        let mut out =
            CudaMatrix::new(&self.device, NumberType::F32, height * width, on_gpu(&by.weight)?.rows())?;
        self.convolve(x, by, scale, false, &mut out)?;
        Ok(Pixels { values: out.into(), height, width })
    }

    /// Writes a convolution, or adds it to what is there.
    fn convolve(
        &self,
        x: &Pixels,
        by: &Convolution,
        scale: usize,
        adds: bool,
        out: &mut CudaMatrix,
    ) -> Result<()> {
        let (values, weight, bias) = (on_gpu(&x.values)?, on_gpu(&by.weight)?, on_gpu(&by.bias)?);
        let (outputs, inner, channels) = (weight.rows(), weight.columns(), values.columns());
        let pixels = scale * scale * x.height * x.width;
        let fits = values.rows() == x.height * x.width
            && inner == by.side * by.side * channels
            && (out.rows(), out.columns(), bias.columns()) == (pixels, outputs, outputs)
            && [values, weight, bias, &*out].iter().all(|matrix| matrix.numbers() == NumberType::F32);
        if !fits || ![(1, 1), (3, 1), (3, 2)].contains(&(by.side, scale)) {
            let problem = format!(
                "{channels} channels, {scale} x {scale} times, are no input of a convolution of {outputs} x {inner}"
            );
            return Err(Error::Argument(problem));
        }
        let (driver, products) = (self.device.driver(), self.device.products());
        let right = Operand { values: weight.input(), stride: inner, transposed: true };
        let multiply = |left: &CudaMatrix, rows: usize, first: usize, out: &mut CudaMatrix| -> Result<()> {
            self.count(rows, inner, outputs);
            let product = ProductBatch {
                numbers: NumberType::F32,
                sizes: ProductSizes { rows, columns: outputs, inner, stride: outputs },
                left: Operand { values: left.input(), stride: inner, transposed: false },
                right,
                steps: [0; 3],
                count: 1,
            };
            let out = out.output_from(first * outputs)?;
            let done = if adds {
                products.add_product(product, out)
            } else {
                products.multiply_to_f32(product, out)
            };
            Ok(done?)
        };
        if by.side == 1 {
            multiply(values, pixels, 0, out)?;
        } else {
            let most = laid_out_pixels(pixels, inner, self.patches);
            let mut laid_out = CudaMatrix::new(&self.device, NumberType::F32, most, inner)?;
            for first in (0..pixels).step_by(most) {
                let count = most.min(pixels - first);
                let (launch, input) = (Launch::strided(count * inner), values.input());
                let to = laid_out.output()?;
                driver.gather_patches(launch, input, x.height, x.width, channels, scale, first, count, to)?;
                multiply(&laid_out, count, first, out)?;
            }
        }
        let launch = Launch::row_parts(pixels, outputs);
        Ok(driver.add_bias(NumberType::F32, launch, out.output()?, bias.input(), pixels, outputs)?)
    }

    /// A norm over groups of channels, and silu of it where it is `activated`.
    fn normed(&self, x: &CudaMatrix, by: &GroupNorm, activated: bool) -> Result<CudaMatrix> {
        let (weight, bias, groups) = (on_gpu(&by.weight)?, on_gpu(&by.bias)?, by.groups);
        let (pixels, channels) = (x.rows(), x.columns());
        if groups == 0
            || x.numbers() != NumberType::F32
            || !channels.is_multiple_of(groups)
            || [weight, bias].map(CudaMatrix::columns) != [channels; 2]
        {
            return Err(Error::Argument(format!("{channels} channels are not normed in {groups} groups")));
        }
        let (driver, parts) = (self.device.driver(), pixels.div_ceil(PIXELS_OF_PART));
        let mut sums = driver.buffer::<f64>(2 * parts * channels)?;
        driver.channel_sums(Launch::parts(channels, parts), x.input(), pixels, channels, sums.output())?;
        let mut statistics = CudaMatrix::new(&self.device, NumberType::F32, groups, 2)?;
        let (launch, epsilon) = (Launch::blocks(groups), GROUP_EPSILON as f32);
        let to = statistics.output()?;
        driver.group_statistics(launch, sums.input(), parts, channels, pixels, epsilon, to)?;
        let mut out = CudaMatrix::new(&self.device, NumberType::F32, pixels, channels)?;
        driver.norm_groups(
            Launch::strided(pixels * channels),
            x.input(),
            statistics.input(),
            weight.input(),
            bias.input(),
            pixels,
            channels,
            groups,
            u32::from(activated),
            out.output()?,
        )?;
        Ok(out)
    }
}
