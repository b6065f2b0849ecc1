//! The damped Gram with a diagonal of ones: what refinement multiplies by.

use rayon::prelude::*;

use super::Factor;
use super::factor::stride;

/// Rows and columns of a tile that is transposed while it stays in the innermost cache.
const TILE: usize = 64;

/// A = H / (s s^T) with H the Gram of a [`Factor`], damped anew, and s_j = sqrt(H_jj), whole and symmetric, in the square that the factor
/// gives up: no second copy of H is ever made.
#[derive(Clone, Debug)]
pub struct ScaledHessian {
    n: usize,
    /// A; rows start [`stride`] apart.
    square: Vec<f32>,
    /// s_j, the largest being 1.
    scale: Vec<f32>,
    /// The share of H_jj that is damping.
    damped: Vec<f32>,
}

impl ScaledHessian {
    /// Damps and scales the Gram of a factor that has served. Dead columns get a one on the diagonal and zeros beside it. n^2 multiplications.
    pub fn new(factor: Factor, damping: f64) -> Self {
        let (n, added) = (factor.width(), factor.added_by(damping));
        let (mut square, diagonal) = factor.into_parts();
        let of_h: Vec<f64> = diagonal.iter().map(|d| d + added).collect();
        // A does not depend on the unit of H: one is taken in which every s is at most 1.
        let unit = of_h.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let columns = || diagonal.iter().zip(&of_h);
        let scale = columns().map(|(_, h)| if *h > 0.0 { (h / unit).sqrt() as f32 } else { 1.0 }).collect();
        let damped = columns().map(|(d, h)| if *d == 0.0 { 1.0 } else { (added / h) as f32 }).collect();
        let reciprocal = |(d, h): (&f64, &f64)| if *d == 0.0 { 0.0 } else { (1.0 / h.sqrt()) as f32 };
        let reciprocals: Vec<f32> = columns().map(reciprocal).collect();
        square.par_chunks_mut(stride(n)).zip(&reciprocals).enumerate().for_each(|(i, (row, r))| {
            row[i] = 1.0;
            row[i + 1..n].iter_mut().zip(&reciprocals[i + 1..]).for_each(|(a, other)| *a = *a * r * other);
        });
        fold_down(&mut square, n);
        Self { n, square, scale, damped }
    }

    /// The same with every value of A changed.
    #[cfg(test)]
    pub(super) fn with_square(mut self, change: impl Fn(f32) -> f32) -> Self {
        self.square.iter_mut().for_each(|a| *a = change(*a));
        self
    }

    /// Columns of the linears: n.
    pub const fn width(&self) -> usize {
        self.n
    }

    /// A, whose rows start [`stride`] apart.
    pub(super) fn square(&self) -> &[f32] {
        &self.square
    }

    /// s_j of every column, the largest being 1.
    pub(super) fn scale(&self) -> &[f32] {
        &self.scale
    }

    /// The share of H_jj that is damping, of every column.
    pub(super) fn damped(&self) -> &[f32] {
        &self.damped
    }
}

/// Copies the strict upper triangle to the lower one.
fn fold_down(square: &mut [f32], n: usize) {
    let row = stride(n);
    for first in (0..n).step_by(TILE) {
        let last = n.min(first + TILE);
        let (above, below) = square.split_at_mut(last * row);
        let above = &mut above[first * row..];
        for i in first..last {
            for j in i + 1..last {
                above[(j - first) * row + i] = above[(i - first) * row + j];
            }
        }
        let above = &*above;
        below.par_chunks_mut(TILE * row).enumerate().for_each(|(tile, rows)| {
            for (j, to) in (last + tile * TILE..).zip(rows.chunks_mut(row)) {
                to[first..last].iter_mut().zip(above.chunks(row)).for_each(|(to, from)| *to = from[j]);
            }
        });
    }
}
