//! (A + rho I)^-1 as an explicit square.

use faer::linalg::matmul::matmul;
use faer::prelude::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::cholesky::rows_mut;
use super::factor::{Float, stride};
use super::inverse::inverse_factor;
use super::scaled::fold_down;
use super::{ScaledHessian, SolveError};

/// Rows and columns of a tile of the inverse. Each is formed by one thread from operands fixed by n alone.
const TILE: usize = 384;

/// Writes (A + rho I)^-1 to `out`, whole and symmetric, its rows [`stride`] apart. A has a diagonal of ones and no negative eigenvalue,
/// so no eigenvalue of the sum is below rho, none above n + rho. Computed in the type T: f32 suffices, which the tests hold to f64.
///
/// n^3 operations: a factorisation L L^T, its inverse Q, and Q^T Q. While it runs, one square of type T more.
///
/// # Errors
/// [`SolveError::NotPositive`] when A is so far from what it should be that the sum has no factor.
pub(super) fn shifted_inverse<T: Float>(
    hessian: &ScaledHessian,
    rho: f64,
    out: &mut Vec<f32>,
) -> Result<(), SolveError> {
    let (n, row) = (hessian.width(), stride(hessian.width()));
    let mut square: Vec<T> = Vec::with_capacity(n * row);
    hessian.square().par_iter().map(|a| T::from_f64(f64::from(*a))).collect_into_vec(&mut square);
    (0..n).for_each(|j| square[j * row + j] = T::from_f64(1.0 + rho));
    if !inverse_factor(&mut square, n, row) {
        return Err(SolveError::NotPositive { damping: rho });
    }
    square.par_chunks_mut(row).enumerate().for_each(|(i, row)| row[i + 1..].fill(T::ZERO));
    let q = MatRef::from_row_major_slice_with_stride(&square, n, n, row);
    out.clear();
    out.resize(n * row, 0.0);
    out.par_chunks_mut(TILE * row).enumerate().for_each(|(i, rows)| {
        let (first, height) = (i * TILE, rows.len() / row);
        // Only what lies on the diagonal or above it: of Q^T Q, rows of Q from the tile's columns on.
        let tiles = rows_mut(rows, height, row).subcols_mut(first, n - first).par_col_chunks_mut(TILE);
        tiles.enumerate().for_each(|(j, mut tile)| {
            let (start, width) = (first + j * TILE, tile.ncols());
            let left = q.submatrix(start, first, n - start, height).transpose();
            let right = q.submatrix(start, start, n - start, width);
            let mut product = vec![T::ZERO; height * width];
            let target = MatMut::from_row_major_slice_mut(&mut product, height, width);
            matmul(target, Accum::Replace, left, right, T::ONE, Par::Seq);
            for (to, from) in tile.rb_mut().row_iter_mut().zip(product.chunks_exact(width)) {
                to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f64() as f32);
            }
        });
    });
    fold_down(out, n);
    Ok(())
}
