//! The operations as compositions of candle's own: any type, any device. Norms and softmax are taken in f32.

use candle_core::{D, DType, Result, Tensor};

use super::{EPSILON, Linear, Modulation, Projected};

impl Modulation {
    /// One part, shaped to be broadcast over the tokens of its item: `batch x 1 x width`.
    fn part(&self, index: usize) -> Result<Tensor> {
        self.values.narrow(1, index * self.width, self.width)?.unsqueeze(1)
    }

    /// A matrix of rows as `batch x tokens x features`.
    fn items(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, features) = x.dims2()?;
        let batch = self.values.dim(0)?;
        x.reshape((batch, rows / batch.max(1), features))
    }
}

pub(super) fn linear(x: &Tensor, layer: &Linear) -> Result<Tensor> {
    x.matmul(&layer.weight.t()?)?.broadcast_add(&layer.bias)
}

pub(super) fn head_norm(x: &Tensor, norm: &Tensor) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let head = norm.dim(0)?;
    let wide = x.reshape((rows, width / head.max(1), head))?.to_dtype(DType::F32)?;
    let mean_square = wide.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = wide.broadcast_div(&(mean_square + EPSILON)?.sqrt()?)?.to_dtype(x.dtype())?;
    normed.broadcast_mul(norm)?.reshape((rows, width))
}

pub(super) fn add_gated(residual: &Tensor, y: &Tensor, by: &Modulation, gate: usize) -> Result<Tensor> {
    let gated = by.items(y)?.broadcast_mul(&by.part(gate)?)?;
    residual + gated.reshape(residual.shape())?
}

pub(super) fn norm_modulate(x: &Tensor, by: &Modulation, shift: usize, scale: usize) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let centred = wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    let normed = centred.broadcast_div(&(variance + EPSILON)?.sqrt()?)?.to_dtype(x.dtype())?;
    let scaled = by.items(&normed)?.broadcast_mul(&(by.part(scale)? + 1.0)?)?;
    scaled.broadcast_add(&by.part(shift)?)?.reshape(x.shape())
}

pub(super) fn attention(streams: &[Projected<'_>], batch: usize, heads: usize) -> Result<Vec<Tensor>> {
    let split = |x: &Tensor| {
        let (rows, width) = x.dims2()?;
        x.reshape((batch, rows / batch.max(1), heads, width / heads.max(1)))?.transpose(1, 2)
    };
    let gather = |parts: Vec<&Tensor>| {
        let parts = parts.into_iter().map(split).collect::<Result<Vec<_>>>()?;
        Tensor::cat(&parts, 2)?.contiguous()
    };
    let keys = gather(streams.iter().map(|stream| stream.keys).collect())?;
    let values = gather(streams.iter().map(|stream| stream.values).collect())?;
    let mut outputs = Vec::with_capacity(streams.len());
    for queries in streams.iter().filter_map(|stream| stream.queries) {
        let scale = 1.0 / (keys.dim(D::Minus1)? as f64).sqrt();
        let scores = (split(queries)?.contiguous()?.matmul(&keys.t()?)?.to_dtype(DType::F32)? * scale)?;
        let shares = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(queries.dtype())?;
        let output = shares.matmul(&values)?.transpose(1, 2)?;
        outputs.push(output.reshape(queries.shape())?);
    }
    Ok(outputs)
}
