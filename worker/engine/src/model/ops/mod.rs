//! The operations a transformer block is made of. Activations are matrices: `rows x features`, the tokens of every batch item
//! after one another.
//!
//! In f32 on the processor they run in kernels of our own, otherwise as compositions of candle's operations.

mod attention;
mod block;
mod composed;
mod linear;
mod memory;
mod norm;
mod packing;
mod parameter;
mod picture;
mod product;
mod rotary;
mod rows;
mod simd;
mod text;

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Tensor;
use rayon::prelude::*;

use crate::{Error, HOST, Result};
pub(crate) use block::{BlockOps, ModelOps};
pub use linear::THREAD_BYTES;
use linear::{Finish, Gates};
pub(crate) use memory::{CallSizes, kept_bytes, peak_bytes, state_bytes};
use norm::Affine;
pub(crate) use parameter::{LinearTensors, Parameter};
#[cfg(feature = "cuda")]
pub(crate) use picture::GROUP_EPSILON;
pub(crate) use picture::{Convolution, GroupNorm, PictureOps, PixelAttention, Pixels};
pub(crate) use rotary::Rotary;
pub use rows::MOST_KEPT_BYTES;
use rows::{BufferPool, TensorSlice, fits, into_numbers};
pub(crate) use text::{ActivationFunction, TextLinear, TextNorm, TextOps, WrittenIn};

/// Shifts, scales and gates of one stream of one block: `batch x (parts * width)`, the parts side by side.
#[derive(Clone, Debug)]
pub(crate) struct Modulation<M = Tensor> {
    pub(crate) values: M,
    pub(crate) width: usize,
}

/// Queries, keys and values of one token stream, each `rows x width` with the heads side by side.
#[derive(Debug)]
pub(crate) struct Projected<'a, M = Tensor> {
    /// None where nobody reads what this stream would attend to.
    pub(crate) queries: Option<&'a M>,
    pub(crate) keys: &'a M,
    pub(crate) values: &'a M,
}

/// Added to variances and mean squares before their root is taken, as diffusers has it.
const EPSILON: f64 = 1e-6;

/// The operations where candle's tensors are, with the buffers they use again.
#[derive(Debug, Default)]
pub(crate) struct CpuOps {
    pool: BufferPool,
    /// Operations of all products so far.
    counted: AtomicU64,
}

impl Clone for CpuOps {
    /// The same operations with buffers of their own.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl CpuOps {
    /// Floating-point operations of all matrix products so far, a multiplication and an addition counted as two.
    pub(crate) fn counted(&self) -> u64 {
        self.counted.load(Ordering::Relaxed)
    }

    /// Counts a product of `rows x n` by `n x out`.
    fn count(&self, rows: usize, n: usize, out: usize) {
        self.counted.fetch_add(2 * rows as u64 * n as u64 * out as u64, Ordering::Relaxed);
    }

    fn count_linear(&self, x: &Tensor, layer: &LinearTensors) -> Result<()> {
        let (out, n) = layer.weight.dims2()?;
        self.count(x.dim(0)?, n, out);
        Ok(())
    }

    /// Takes back an activation that nobody reads any more, for a later operation to use its buffer.
    pub(crate) fn give(&self, activation: Tensor) -> Result<()> {
        if fits(&activation) {
            self.pool.give(into_numbers(activation)?);
        }
        Ok(())
    }

    /// `x W^T + b`: `rows x n` to `rows x out`.
    pub(crate) fn linear(&self, x: &Tensor, layer: &LinearTensors) -> Result<Tensor> {
        self.count_linear(x, layer)?;
        if layer.fits(x) { self.finished(x, layer, Finish::Plain) } else { Ok(composed::linear(x, layer)?) }
    }

    /// [`Self::linear`], then GELU by its tanh approximation.
    pub(crate) fn linear_gelu(&self, x: &Tensor, layer: &LinearTensors) -> Result<Tensor> {
        self.count_linear(x, layer)?;
        if layer.fits(x) {
            self.finished(x, layer, Finish::Gelu)
        } else {
            Ok(composed::linear(x, layer)?.gelu()?)
        }
    }

    /// [`Self::linear`], then every head divided by its root mean square and multiplied by `norm`, where there is one.
    pub(crate) fn linear_head_norm(
        &self,
        x: &Tensor,
        layer: &LinearTensors,
        norm: Option<&Tensor>,
    ) -> Result<Tensor> {
        let Some(norm) = norm else { return self.linear(x, layer) };
        self.count_linear(x, layer)?;
        if layer.fits(x) && fits(norm) {
            self.finished(x, layer, Finish::HeadNorm(TensorSlice::of(norm).numbers()?))
        } else {
            Ok(composed::head_norm(&composed::linear(x, layer)?, norm)?)
        }
    }

    fn finished(&self, x: &Tensor, layer: &LinearTensors, finish: Finish<'_>) -> Result<Tensor> {
        let shape = (x.dim(0)?, layer.bias.dim(0)?);
        let mut out = self.pool.take(shape.0 * shape.1);
        layer.run(&mut out, x, finish)?;
        Ok(Tensor::from_vec(out, shape, &HOST)?)
    }

    /// `residual + gate * (x W^T + b)` with the gate of each row's batch item. The residual is nobody else's.
    pub(crate) fn add_gated_linear(
        &self,
        residual: Tensor,
        x: &Tensor,
        layer: &LinearTensors,
        by: &Modulation,
        gate: usize,
    ) -> Result<Tensor> {
        self.count_linear(x, layer)?;
        if !(layer.fits(x) && fits(&residual) && fits(&by.values)) {
            return Ok(composed::add_gated(&residual, &composed::linear(x, layer)?, by, gate)?);
        }
        let (batch, stride) = by.values.dims2()?;
        let shape = residual.dims2()?;
        let mut numbers = into_numbers(residual)?;
        let values = TensorSlice::of(&by.values);
        let gates = Gates {
            values: values.numbers()?,
            stride,
            start: gate * by.width,
            tokens: shape.0 / batch.max(1),
        };
        layer.run(&mut numbers, x, Finish::AddGated(gates))?;
        Ok(Tensor::from_vec(numbers, shape, &HOST)?)
    }

    /// Layer norm without affine parameters, times 1 + scale, plus shift, with the scale and shift of each row's batch item.
    pub(crate) fn norm_modulate(
        &self,
        x: &Tensor,
        by: &Modulation,
        shift: usize,
        scale: usize,
    ) -> Result<Tensor> {
        if !(fits(x) && fits(&by.values)) {
            return Ok(composed::norm_modulate(x, by, shift, scale)?);
        }
        let (batch, stride) = by.values.dims2()?;
        let (rows, width) = x.dims2()?;
        let mut out = self.pool.take(rows * width);
        let values = TensorSlice::of(&by.values);
        let affine = Affine {
            values: values.numbers()?,
            stride,
            scale: scale * width,
            shift: shift * width,
            tokens: rows / batch.max(1),
        };
        norm::norm_modulate(&mut out, TensorSlice::of(x).numbers()?, width, affine);
        Ok(Tensor::from_vec(out, (rows, width), &HOST)?)
    }

    /// The features of two matrices side by side: `rows x a` and `rows x b` to `rows x (a + b)`.
    pub(crate) fn joined(&self, left: &Tensor, right: &Tensor) -> Result<Tensor> {
        if !(fits(left) && fits(right)) {
            return Ok(Tensor::cat(&[left, right], 1)?);
        }
        let ((rows, a), b) = (left.dims2()?, right.dim(1)?);
        let (left, right) = (TensorSlice::of(left), TensorSlice::of(right));
        let (left, right) = (left.numbers()?, right.numbers()?);
        if right.len() != rows * b {
            return Err(Error::Argument(format!("{rows} rows are not joined to {} numbers", right.len())));
        }
        let mut out = self.pool.take(rows * (a + b));
        let pairs = left.par_chunks_exact(a.max(1)).zip(right.par_chunks_exact(b.max(1)));
        out.par_chunks_exact_mut((a + b).max(1)).zip(pairs).for_each(|(out, (left, right))| {
            out[..a].copy_from_slice(left);
            out[a..].copy_from_slice(right);
        });
        Ok(Tensor::from_vec(out, (rows, a + b), &HOST)?)
    }

    /// Turns every head of the last tokens of each batch item by the tokens' angles. The heads are nobody else's.
    pub(crate) fn rotate(&self, x: Tensor, by: &Rotary, batch: usize) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let (turned, pairs) = by.cosines.dims2()?;
        let tokens = rows / batch.max(1);
        if turned > tokens || pairs == 0 || !width.is_multiple_of(2 * pairs) {
            let problem =
                format!("{turned} tokens of {pairs} pairs do not fit {tokens} tokens of {width} features");
            return Err(Error::Argument(problem));
        }
        if !(fits(&x) && fits(&by.cosines) && fits(&by.sines)) {
            return Ok(rotary::composed(&x, by, batch)?);
        }
        let mut numbers = into_numbers(x)?;
        let (cosines, sines) = (TensorSlice::of(&by.cosines), TensorSlice::of(&by.sines));
        let angles = rotary::Angles { cosines: cosines.numbers()?, sines: sines.numbers()?, pairs };
        rotary::rotate(&mut numbers, width, tokens, angles);
        Ok(Tensor::from_vec(numbers, (rows, width), &HOST)?)
    }

    /// Counts the products of all queries by the keys of their batch item, and of what these weigh by the values.
    fn count_attention(&self, streams: &[Projected<'_>], batch: usize) -> Result<()> {
        let mut keys = 0;
        for stream in streams {
            keys += stream.keys.dim(0)?;
        }
        for queries in streams.iter().filter_map(|stream| stream.queries) {
            let (rows, width) = queries.dims2()?;
            self.count(2 * rows, width, keys / batch.max(1));
        }
        Ok(())
    }

    /// Softmax attention of the streams' queries on the keys of all streams together, per batch item and head; one output
    /// (`rows x width`) for each stream with queries.
    pub(crate) fn attention(
        &self,
        streams: &[Projected<'_>],
        batch: usize,
        heads: usize,
    ) -> Result<Vec<Tensor>> {
        self.count_attention(streams, batch)?;
        let kernel = |s: &Projected<'_>| fits(s.keys) && fits(s.values) && s.queries.is_none_or(fits);
        if !streams.iter().all(kernel) {
            return Ok(composed::attention(streams, batch, heads)?);
        }
        let views: Vec<_> = streams
            .iter()
            .map(|s| (s.queries.map(TensorSlice::of), TensorSlice::of(s.keys), TensorSlice::of(s.values)))
            .collect();
        let mut slices = Vec::with_capacity(streams.len());
        let mut outputs = Vec::with_capacity(streams.len());
        let mut width = 0;
        for (stream, (queries, keys, values)) in streams.iter().zip(&views) {
            let (rows, features) = stream.keys.dims2()?;
            width = features;
            let queries = queries.as_ref().map(TensorSlice::numbers).transpose()?;
            let (keys, values) = (keys.numbers()?, values.numbers()?);
            slices.push(attention::AttentionStream { queries, keys, values, tokens: rows / batch.max(1) });
            if queries.is_some() {
                outputs.push((self.pool.take(rows * width), rows));
            }
        }
        let sizes = attention::AttentionSizes { batch, heads, head: width / heads.max(1) };
        attention::attention(outputs.iter_mut().map(|(out, _)| out.as_mut_slice()).collect(), &slices, sizes);
        let tensor = |(out, rows)| Ok(Tensor::from_vec(out, (rows, width), &HOST)?);
        outputs.into_iter().map(tensor).collect()
    }
}

impl LinearTensors {
    /// Whether a kernel can take this linear of `x`.
    fn fits(&self, x: &Tensor) -> bool {
        let shapes = matches!((x.dims(), self.weight.dims()), (&[_, n], &[_, m]) if n == m);
        shapes && fits(x) && fits(&self.weight) && fits(&self.bias)
    }

    fn run(&self, out: &mut [f32], x: &Tensor, finish: Finish<'_>) -> Result<()> {
        let (weight, bias) = (TensorSlice::of(&self.weight), TensorSlice::of(&self.bias));
        let weights = linear::LinearSlices { weight: weight.numbers()?, bias: bias.numbers()? };
        linear::linear(out, TensorSlice::of(x).numbers()?, weights, finish);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
