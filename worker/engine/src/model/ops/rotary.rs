//! Rotary position embedding (arXiv 2104.09864): neighbouring features are turned as pairs, by angles that a token's place sets.

use candle_core::{D, DType, Result, Tensor};
use rayon::prelude::*;

use super::simd::{Kernel, vectorized};
use crate::HOST;

/// Numbers turned as one piece of work.
const PIECE: usize = 1 << 14;

/// The angles of a batch item's last tokens. Tokens before these stay as they are.
#[derive(Clone, Debug)]
pub(crate) struct Rotary<M = Tensor> {
    /// `tokens x head / 2`, in f32 both.
    pub(crate) cosines: M,
    pub(crate) sines: M,
}

impl Rotary {
    /// From angles in radians, `tokens x pairs` with the pairs of a token side by side.
    pub(crate) fn new(angles: &[f64], pairs: usize) -> Result<Self> {
        let shape = (angles.len() / pairs.max(1), pairs);
        let table = |of: fn(f64) -> f64| {
            Tensor::from_iter(angles.iter().map(|angle| of(*angle) as f32), &HOST)?.reshape(shape)
        };
        Ok(Self { cosines: table(f64::cos)?, sines: table(f64::sin)? })
    }
}

/// The angles as slices.
#[derive(Clone, Copy)]
pub(super) struct Angles<'a> {
    pub(super) cosines: &'a [f32],
    pub(super) sines: &'a [f32],
    pub(super) pairs: usize,
}

/// Turns every head of the last tokens of each item of `tokens` rows, of `width` numbers each: 3 flops a number.
pub(super) fn rotate(numbers: &mut [f32], width: usize, tokens: usize, by: Angles<'_>) {
    let Some(turned) = by.cosines.len().checked_div(by.pairs) else { return };
    let rows = (PIECE / width.max(1)).max(1);
    for item in numbers.chunks_exact_mut(tokens * width) {
        let (_, last) = item.split_at_mut(tokens.saturating_sub(turned) * width);
        let angles = by.cosines.par_chunks(rows * by.pairs).zip(by.sines.par_chunks(rows * by.pairs));
        last.par_chunks_mut(rows * width).zip(angles).for_each(|(x, (cosines, sines))| {
            vectorized(TurnRows { x, width, by: Angles { cosines, sines, pairs: by.pairs } });
        });
    }
}

/// Some rows with their angles.
struct TurnRows<'a> {
    x: &'a mut [f32],
    width: usize,
    by: Angles<'a>,
}

impl Kernel for TurnRows<'_> {
    #[inline(always)]
    fn run(self) {
        let Angles { cosines, sines, pairs } = self.by;
        let angles = cosines.chunks_exact(pairs).zip(sines.chunks_exact(pairs));
        for (row, (cosines, sines)) in self.x.chunks_exact_mut(self.width).zip(angles) {
            for head in row.chunks_exact_mut(2 * pairs) {
                for ([a, b], (cosine, sine)) in
                    head.as_chunks_mut().0.iter_mut().zip(cosines.iter().zip(sines))
                {
                    (*a, *b) = (*a * cosine - *b * sine, *b * cosine + *a * sine);
                }
            }
        }
    }
}

/// The same by candle's operations. The angles are applied in f32.
pub(super) fn composed(x: &Tensor, by: &Rotary, batch: usize) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let (turned, pairs) = by.cosines.dims2()?;
    let items = x.reshape((batch, rows / batch.max(1), width))?;
    let still = items.dim(1)?.saturating_sub(turned);
    let heads = width / (2 * pairs).max(1);
    let last = items.narrow(1, still, turned)?.reshape(&[batch, turned, heads, pairs, 2])?;
    let last = last.to_dtype(DType::F32)?;
    let [a, b] = [0, 1].map(|i| last.narrow(D::Minus1, i, 1)?.squeeze(D::Minus1));
    let (a, b) = (a?, b?);
    let [cosines, sines] = [&by.cosines, &by.sines].map(|table| table.unsqueeze(1));
    let (cosines, sines) = (cosines?, sines?);
    let first = (a.broadcast_mul(&cosines)? - b.broadcast_mul(&sines)?)?;
    let second = (b.broadcast_mul(&cosines)? + a.broadcast_mul(&sines)?)?;
    let last = Tensor::stack(&[first, second], D::Minus1)?.reshape((batch, turned, width))?;
    let parts = [items.narrow(1, 0, still)?, last.to_dtype(x.dtype())?];
    Tensor::cat(&parts, 1)?.reshape((rows, width))
}
