//! Layer norm with adaptive scale and shift.

use rayon::prelude::*;

use super::EPSILON;
use super::simd::{Kernel, sum, vectorized};

/// Numbers normed as one piece of work.
const PIECE: usize = 1 << 14;

/// Scales and shifts of each batch item.
#[derive(Clone, Copy)]
pub(super) struct Affine<'a> {
    /// One matrix row for each item.
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
    /// Where in it the scales and the shifts start.
    pub(super) scale: usize,
    pub(super) shift: usize,
    /// Rows of an item.
    pub(super) tokens: usize,
}

/// Writes (x - mean) / sqrt(variance + epsilon) * (1 + scale) + shift of every row of `width` numbers to `out`.
pub(super) fn norm_modulate(out: &mut [f32], x: &[f32], width: usize, by: Affine<'_>) {
    let rows = (PIECE / width.max(1)).max(1);
    let pieces = out.par_chunks_mut(rows * width).zip(x.par_chunks(rows * width)).enumerate();
    pieces.for_each(|(piece, (out, x))| {
        vectorized(NormRows { out, x, width, by, first: piece * rows });
    });
}

/// Some rows, from row `first` of the matrix on.
struct NormRows<'a> {
    out: &'a mut [f32],
    x: &'a [f32],
    width: usize,
    by: Affine<'a>,
    first: usize,
}

impl Kernel for NormRows<'_> {
    #[inline(always)]
    fn run(self) {
        let Self { out, x, width, by, first } = self;
        for (row, (out, x)) in out.chunks_exact_mut(width).zip(x.chunks_exact(width)).enumerate() {
            let item = &by.values[(first + row) / by.tokens * by.stride..][..by.stride];
            norm_row(out, x, &item[by.scale..][..width], &item[by.shift..][..width]);
        }
    }
}

#[inline(always)]
fn norm_row(out: &mut [f32], x: &[f32], scale: &[f32], shift: &[f32]) {
    let count = x.len() as f32;
    let mean = sum(x, |x| x) / count;
    let variance = sum(x, |x| (x - mean) * (x - mean)) / count;
    let factor = 1.0 / (variance + EPSILON as f32).sqrt();
    for ((y, x), (scale, shift)) in out.iter_mut().zip(x).zip(scale.iter().zip(shift)) {
        *y = ((x - mean) * factor).mul_add(1.0 + scale, *shift);
    }
}
