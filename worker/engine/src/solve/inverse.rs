//! The inverse of a Cholesky factor in place, a block row at a time, threaded over blocks of columns.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::cholesky::{AREA, Cholesky, SIDE, block_ref, lower_times, rows_mut};
use super::float::Float;
use super::task_rows;

/// Replaces A, whose lower triangle lies in `square` (n x n, rows `stride` apart), by Q = L^-1, with A = L L^T. False when a pivot is
/// not positive.
///
/// Each block row of L becomes Q's while the next block column of L is formed, so that there is work for every thread all the time.
pub(super) fn inverse_factor<T: Float>(square: &mut [T], n: usize, stride: usize) -> bool {
    let Some(mut cholesky) = Cholesky::begin(square, n, stride) else { return false };
    let mut scratch = vec![T::ZERO; SIDE * n];
    (0..=cholesky.steps()).all(|k| {
        let (inverses, step) = cholesky.step(k);
        let (done, rows) = square.split_at_mut((k * SIDE).min(n) * stride);
        let invert = || {
            if k > 0 {
                invert_row(done, stride, inverses, &mut scratch);
            }
        };
        let ((), positive) = rayon::join(invert, || step.take(rows));
        positive
    })
}

/// Replaces block row k of L, the last one in `square` (rows `stride` apart), by that of Q = L^-1; the rows above it are Q's already.
/// `inverses` are those of L's blocks on the diagonal up to the k-th, `row` is scratch of [`SIDE`] rows of L.
///
/// Q_kc = -L_kk^-1 sum_{c <= j < k} L_kj Q_jc. 1/3 n^3 operations for all rows; a task forms one block of columns, its sum in one
/// product.
fn invert_row<T: Float>(square: &mut [T], stride: usize, inverses: &[T], row: &mut [T]) {
    let k = inverses.len() / AREA - 1;
    let start = k * SIDE;
    let (above, panel) = square.split_at_mut(start * stride);
    let side = panel.len().div_ceil(stride);
    let inverse = &inverses[k * AREA..];
    // L's block row is read by every task while each writes its block of Q's.
    let row = &mut row[..side * start];
    if start > 0 {
        let rows = row.par_chunks_mut(start).with_min_len(task_rows(start));
        rows.zip(panel.par_chunks(stride)).for_each(|(to, from)| {
            to.copy_from_slice(&from[..start]);
        });
    }
    let row = MatRef::from_row_major_slice(row, side, start);
    let above = MatRef::from_row_major_slice(above, start, stride);
    let targets = rows_mut(panel, side, stride).subcols_mut(0, start).par_col_chunks_mut(SIDE);
    targets.enumerate().with_max_len(1).for_each_init(
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
            lower_times(target, inverse, sum.as_ref(), -T::ONE);
        },
    );
    for (i, to) in panel.chunks_exact_mut(stride).enumerate() {
        to[start..=start + i].copy_from_slice(&inverse[i * SIDE..=i * SIDE + i]);
    }
}
