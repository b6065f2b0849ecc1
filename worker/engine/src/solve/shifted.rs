//! (A + rho I)^-1 as an explicit square.

use faer::linalg::matmul::matmul;
use faer::prelude::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::cholesky::rows_mut;
use super::factor::stride;
use super::float::Float;
use super::inverse::inverse_factor;
use super::scaled::fold_down;
use super::{ScaledHessian, SolveError, task_rows};

/// Rows and columns of a tile of the inverse, of a width of n. Each is formed by one thread from operands fixed by n alone. Tiles on the
/// diagonal are formed whole, and all sums begin where their columns' tile does: small ones waste less, large ones come nearer to the
/// GEMM's rate.
const fn tile(n: usize) -> usize {
    if n <= 3072 { 192 } else { 384 }
}

/// Writes (A + rho I)^-1 to `out`, whole and symmetric, its rows [`stride`] apart. A has a diagonal of ones and no negative eigenvalue,
/// so no eigenvalue of the sum is below rho, none above n + rho. Computed in the type T: f32 suffices, which the tests hold to f64.
///
/// n^3 operations: a factorisation L L^T, its inverse Q, and Q^T Q. They take place in `square`, which grows to as many values as the
/// inverse and is of no use afterwards but for the next one.
///
/// # Errors
/// [`SolveError::NotPositive`] when A is so far from what it should be that the sum has no factor.
pub(super) fn shifted_inverse<T: Float>(
    hessian: &ScaledHessian,
    rho: f64,
    square: &mut Vec<T>,
    out: &mut Vec<f32>,
) -> Result<(), SolveError> {
    let (n, row) = (hessian.width(), stride(hessian.width()));
    // Every value that is read later is written first: what is there from the last time need not be cleared.
    square.resize(n * row, T::ZERO);
    let rows = square.par_chunks_mut(row).with_min_len(task_rows(row));
    rows.zip(hessian.square().par_chunks(row)).for_each(|(to, from)| {
        to.iter_mut().zip(from).for_each(|(to, a)| *to = T::from_f64(f64::from(*a)));
    });
    (0..n).for_each(|j| square[j * row + j] = T::from_f64(1.0 + rho));
    if !inverse_factor(square, n, row) {
        return Err(SolveError::NotPositive { damping: rho });
    }
    let rows = square.par_chunks_mut(row).with_min_len(task_rows(row));
    rows.enumerate().for_each(|(i, row)| row[i + 1..].fill(T::ZERO));
    let q = MatRef::from_row_major_slice_with_stride(square, n, n, row);
    out.resize(n * row, 0.0);
    let side = tile(n);
    out.par_chunks_mut(side * row).enumerate().for_each(|(i, rows)| {
        let (first, height) = (i * side, rows.len() / row);
        // Only what lies on the diagonal or above it: of Q^T Q, rows of Q from the tile's columns on.
        let tiles = rows_mut(rows, height, row).subcols_mut(first, n - first).par_col_chunks_mut(side);
        tiles.enumerate().for_each(|(j, mut tile)| {
            let (start, width) = (first + j * side, tile.ncols());
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
