//! The inverse of a blocked lower triangular matrix in place, threaded over blocks of columns.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::cholesky::{AREA, SIDE, block_ref, rows_mut};
use super::factor::Float;

/// Replaces L, as [`super::cholesky::cholesky`] leaves it in `square` with the `inverses` of its blocks on the diagonal, by Q = L^-1.
///
/// Block rows from the top: Q_kc = -L_kk^-1 sum_{c <= j < k} L_kj Q_jc. 1/3 n^3 operations; a task forms one block of columns, its
/// sum in one product.
pub(super) fn invert<T: Float>(square: &mut [T], n: usize, stride: usize, inverses: &[T]) {
    let mut row = vec![T::ZERO; SIDE * n];
    for (k, start) in (0..n).step_by(SIDE).enumerate() {
        let side = SIDE.min(n - start);
        let inverse = &inverses[k * AREA..(k + 1) * AREA];
        let (above, panel) = square.split_at_mut(start * stride);
        let panel = &mut panel[..side * stride];
        // L's block row is read by every task while each writes its block of Q's.
        let row = &mut row[..side * start];
        if start > 0 {
            row.par_chunks_mut(start).zip(panel.par_chunks(stride)).for_each(|(to, from)| {
                to.copy_from_slice(&from[..start]);
            });
        }
        let row = MatRef::from_row_major_slice(row, side, start);
        let above = MatRef::from_row_major_slice(above, start, stride);
        let targets = rows_mut(panel, side, stride).subcols_mut(0, start).par_col_chunks_mut(SIDE);
        targets.enumerate().for_each_init(
            || vec![T::ZERO; AREA],
            |scratch, (c, target)| {
                let first = c * SIDE;
                let next = first + SIDE;
                let mut sum = MatMut::from_row_major_slice_mut(&mut scratch[..side * SIDE], side, SIDE);
                let top = block_ref(&inverses[c * AREA..(c + 1) * AREA], SIDE);
                matmul(sum.as_mut(), Accum::Replace, row.subcols(first, SIDE), top, T::ONE, Par::Seq);
                let rest = above.submatrix(next, first, start - next, SIDE);
                let left = row.subcols(next, start - next);
                matmul(sum.as_mut(), Accum::Add, left, rest, T::ONE, Par::Seq);
                let inverse = block_ref(inverse, side);
                matmul(target, Accum::Replace, inverse, sum.as_ref(), -T::ONE, Par::Seq);
            },
        );
        for (i, to) in panel.chunks_exact_mut(stride).enumerate() {
            to[start..=start + i].copy_from_slice(&inverse[i * SIDE..=i * SIDE + i]);
        }
    }
}
