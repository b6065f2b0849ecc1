//! H^-1 as an explicit matrix, and its downdates.
//!
//! Only the upper triangle of a symmetric n x n matrix is kept current; what lies below the diagonal means nothing.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::super::SolveError;
use super::super::factor::{live_mean, mirror_damped, raised, stride};
use super::super::inverse::inverse_factor as invert;

/// Rows of one task. Every product is formed by one thread from operands fixed by n alone, so results do not depend on the number of
/// threads.
pub(in crate::solve) const ROWS: usize = 128;

/// H^-1 for H = S + damping * mean(diag S) I, of a symmetric S (n x n, row-major), and the damping with which S could be
/// factorised. Columns with S_jj = 0 are dead and take no part in the mean.
///
/// n^3 operations: a factorisation, a triangular inverse Q of the reversed matrix, and Q^T Q.
pub(super) fn inverse(gram: &[f64], n: usize, damping: f64) -> Result<(Vec<f64>, f64), SolveError> {
    let row = stride(n);
    if n == 0 || gram.len() != n * n {
        return Err(SolveError::Size { rows: n, columns: n, found: gram.len() });
    }
    if !(damping >= 0.0 && damping.is_finite()) {
        return Err(SolveError::Damping { damping });
    }
    let mut square = vec![0.0; n * row];
    square
        .chunks_exact_mut(row)
        .zip(gram.chunks_exact(n))
        .for_each(|(to, from)| to[..n].copy_from_slice(from));
    let diagonal: Vec<f64> = (0..n).map(|j| gram[j * n + j]).collect();
    let mut next = Some(damping);
    while let Some(used) = next {
        mirror_damped(&mut square, n, &diagonal, used * live_mean(&diagonal))?;
        if invert(&mut square, n, row) {
            return Ok((gathered(square, n), used));
        }
        next = raised(used);
    }
    Err(SolveError::NotPositive { damping: damping.max(1.0) })
}

/// H^-1 from the lower triangle Q of a square: J Q^T Q J, with J the reversal of rows and columns.
fn gathered(mut square: Vec<f64>, n: usize) -> Vec<f64> {
    let row = stride(n);
    square.par_chunks_mut(row).enumerate().for_each(|(i, row)| row[i + 1..].fill(0.0));
    let q = MatRef::from_row_major_slice_with_stride(&square, n, n, row);
    let mut inverse = vec![0.0; n * n];
    inverse.par_chunks_mut(ROWS * n).enumerate().for_each_init(Vec::new, |scratch, (block, rows)| {
        let height = rows.len() / n;
        // Rows i of the inverse are rows n-1-i of Q^T Q: first..end, whose products start at row `first` of Q.
        let end = n - block * ROWS;
        let first = end - height;
        scratch.resize(height * end, 0.0);
        let out = MatMut::from_row_major_slice_mut(scratch, height, end);
        let left = q.submatrix(first, first, n - first, height).transpose();
        matmul(out, Accum::Replace, left, q.submatrix(first, 0, n - first, end), 1.0, Par::Seq);
        for (to, from) in rows.chunks_exact_mut(n).rev().zip(scratch.chunks_exact(end)) {
            to.iter_mut().rev().zip(from).for_each(|(to, from)| *to = *from);
        }
    });
    inverse
}

/// Row `i` of a symmetric matrix of which the upper triangle is kept, written to `row`.
pub(super) fn symmetric_row(matrix: &[f64], n: usize, i: usize, row: &mut [f64]) {
    for (j, x) in row[..i].iter_mut().enumerate() {
        *x = matrix[j * n + i];
    }
    row[i..].copy_from_slice(&matrix[i * n + i..(i + 1) * n]);
}

/// Takes `left`^T `right` (both k x n), which is symmetric, off the upper triangle of an n x n matrix: k n^2 operations.
pub(super) fn downdate(matrix: &mut [f64], n: usize, left: &[f64], right: &[f64]) {
    let k = left.len() / n;
    let [left, right] = [left, right].map(|x| MatRef::from_row_major_slice(&x[..k * n], k, n));
    matrix.par_chunks_mut(ROWS * n).enumerate().for_each(|(block, rows)| {
        let (first, height) = (block * ROWS, rows.len() / n);
        let target = MatMut::from_row_major_slice_mut(rows, height, n).subcols_mut(first, n - first);
        let left = left.subcols(first, height).transpose();
        matmul(target, Accum::Add, left, right.subcols(first, n - first), -1.0, Par::Seq);
    });
}

/// The inverse of the Cholesky factor of a symmetric k x k matrix (row-major, its lower triangle), zero above the diagonal.
pub(crate) fn inverse_factor(matrix: &[f64], k: usize) -> Result<Vec<f64>, SolveError> {
    let row = stride(k);
    let mut square = vec![0.0; k * row];
    square
        .chunks_exact_mut(row)
        .zip(matrix.chunks_exact(k))
        .for_each(|(to, from)| to[..k].copy_from_slice(from));
    if !invert(&mut square, k, row) {
        return Err(SolveError::NotPositive { damping: 0.0 });
    }
    let mut factor = vec![0.0; k * k];
    for (i, (to, from)) in factor.chunks_exact_mut(k).zip(square.chunks_exact(row)).enumerate() {
        to[..=i].copy_from_slice(&from[..=i]);
    }
    Ok(factor)
}

/// `left` (m x k) times `right` (k x n), by tasks of rows.
pub(super) fn product(left: MatRef<'_, f64>, right: MatRef<'_, f64>) -> Vec<f64> {
    let (m, n) = (left.nrows(), right.ncols());
    let mut out = vec![0.0; m * n];
    out.par_chunks_mut(ROWS * n).enumerate().for_each(|(block, rows)| {
        let height = rows.len() / n;
        let out = MatMut::from_row_major_slice_mut(rows, height, n);
        matmul(out, Accum::Replace, left.subrows(block * ROWS, height), right, 1.0, Par::Seq);
    });
    out
}
