//! The operations as compositions of candle's own: any type, any device. Norms and softmax are taken in f32.

use candle_core::{D, DType, Result, Tensor};

use super::{EPSILON, LinearTensors, Modulation, Projected};

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

pub(super) fn linear(x: &Tensor, layer: &LinearTensors) -> Result<Tensor> {
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

/// Queries whose scores are in memory at a time.
pub(super) const QUERIES: usize = 1024;

pub(super) fn attention(streams: &[Projected<'_>], batch: usize, heads: usize) -> Result<Vec<Tensor>> {
    let mut outputs: Vec<Vec<Tensor>> = vec![Vec::new(); streams.len()];
    for item in 0..batch {
        let split = |x: &Tensor| {
            let (rows, width) = x.dims2()?;
            let tokens = rows / batch;
            x.narrow(0, item * tokens, tokens)?
                .reshape((tokens, heads, width / heads.max(1)))?
                .transpose(0, 1)
        };
        let gather = |parts: Vec<&Tensor>| {
            let parts = parts.into_iter().map(split).collect::<Result<Vec<_>>>()?;
            Tensor::cat(&parts, 1)?.contiguous()
        };
        let keys = gather(streams.iter().map(|stream| stream.keys).collect())?;
        let values = gather(streams.iter().map(|stream| stream.values).collect())?;
        for (stream, outputs) in streams.iter().zip(&mut outputs) {
            let Some(queries) = stream.queries else { continue };
            let queries = split(queries)?;
            let tokens = queries.dim(1)?;
            for first in (0..tokens).step_by(QUERIES) {
                let block = queries.narrow(1, first, QUERIES.min(tokens - first))?.contiguous()?;
                outputs.push(attend(&block, &keys, &values)?.transpose(0, 1)?.flatten_from(1)?);
            }
        }
    }
    outputs.into_iter().filter(|parts| !parts.is_empty()).map(|parts| Tensor::cat(&parts, 0)).collect()
}

/// `heads x queries x head`.
fn attend(queries: &Tensor, keys: &Tensor, values: &Tensor) -> Result<Tensor> {
    let scale = 1.0 / (keys.dim(D::Minus1)? as f64).sqrt();
    let scores = (queries.matmul(&keys.t()?)?.to_dtype(DType::F32)? * scale)?;
    candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(values.dtype())?.matmul(values)
}
