//! A picture of 8 bits a colour.

use candle_core::{DType, Tensor};

use crate::{Error, Result};

/// A picture as a screen shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    /// Pixels from left to right.
    pub width: u32,
    /// Pixels from top to bottom.
    pub height: u32,
    /// Red, green and blue of every pixel, row by row from the top: `height * width * 3` bytes.
    pub rgb: Vec<u8>,
}

impl Picture {
    /// Makes pictures of decoded ones, `batch x 3 x height x width` of -1 to 1, as diffusers' `VaeImageProcessor` does: halved and
    /// moved to 0..1, clamped, and rounded to 255 levels, halves to the even one.
    ///
    /// # Errors
    /// When the tensor has another shape, or holds a number that is not finite.
    pub fn of_batch(decoded: &Tensor) -> Result<Vec<Self>> {
        let (batch, channels, height, width) = decoded.dims4()?;
        let sides = u32::try_from(height).ok().zip(u32::try_from(width).ok());
        let (3, Some((rows, columns))) = (channels, sides) else {
            return Err(Error::Argument(format!(
                "a tensor of shape {:?} is no batch of pictures",
                decoded.dims()
            )));
        };
        let pixels = decoded.to_dtype(DType::F32)?.permute((0, 2, 3, 1))?.flatten_all()?.to_vec1::<f32>()?;
        if !pixels.iter().all(|value| value.is_finite()) {
            return Err(Error::Argument("a decoded picture holds a value that is not finite".to_owned()));
        }
        let size = height * width * 3;
        let picture = |i: usize| Self {
            width: columns,
            height: rows,
            rgb: pixels[i * size..(i + 1) * size].iter().map(|&value| level(value)).collect(),
        };
        Ok((0..batch).map(picture).collect())
    }
}

fn level(value: f32) -> u8 {
    ((value * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}
