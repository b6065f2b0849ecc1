//! A blocked Cholesky factorisation in place, threaded over block rows.
//!
//! Every product is formed by one thread from operands fixed by n alone, so the factor does not depend on the number of threads.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::prelude::{IntoConst, Reborrow, ReborrowMut};
use faer::{Accum, MatMut, MatRef, Par, Spec};
use rayon::prelude::*;

use super::float::Float;

/// Rows and columns of a block: whole registers of the GEMM's kernels (96 and 48 f32 rows, 24 of f64).
pub(super) const SIDE: usize = 96;

/// Values of a block on the diagonal, which are kept apart: in the square their upper halves belong to another matrix.
pub(super) const AREA: usize = SIDE * SIDE;

/// Replaces the matrix A whose lower triangle lies in `square` (n x n, rows `stride` apart) by L, with A = L L^T. False when a pivot is
/// not positive.
///
/// 1/3 n^3 operations.
pub(super) fn cholesky<T: Float>(square: &mut [T], n: usize, stride: usize) -> bool {
    let Some(mut cholesky) = Cholesky::begin(square, n, stride) else { return false };
    (0..cholesky.steps()).all(|k| cholesky.step(k).1.take(&mut square[k * SIDE * stride..]))
}

/// A factorisation in progress. After step k the block columns up to k of L are done, and its block rows up to k are needed no more.
pub(super) struct Cholesky<T> {
    n: usize,
    stride: usize,
    /// The blocks on the diagonal, each [`SIDE`] x [`SIDE`] row-major: inverses of L's, zero above the diagonal, as far as it is done.
    blocks: Vec<T>,
    /// As much again: what a step sums for each block row.
    sums: Vec<T>,
}

impl<T: Float> Cholesky<T> {
    /// Begins to factorise the matrix A whose lower triangle lies in `square` (n x n, rows `stride` apart) into L L^T. `None` when
    /// the first pivots are not positive.
    pub(super) fn begin(square: &mut [T], n: usize, stride: usize) -> Option<Self> {
        let mut blocks = diagonal_blocks(square, n, stride);
        let side = SIDE.min(n);
        let first = rows_mut(square, side, stride).subcols_mut(0, side);
        invert_factor(&mut blocks[..AREA], first)?;
        let sums = vec![T::ZERO; blocks.len()];
        Some(Self { n, stride, blocks, sums })
    }

    /// Steps that it takes.
    pub(super) fn steps(&self) -> usize {
        self.n.div_ceil(SIDE)
    }

    /// The next step, the `k`-th; while it runs, others may read the inverses of L's blocks on the diagonal before the k-th.
    pub(super) fn step(&mut self, k: usize) -> (&[T], BlockColumn<'_, T>) {
        let (n, stride) = (self.n, self.stride);
        let (done, blocks) = self.blocks.split_at_mut((k * AREA).min(n.div_ceil(SIDE) * AREA));
        (done, BlockColumn { n, stride, start: k * SIDE, blocks, sums: &mut self.sums })
    }
}

/// One step: a block column.
pub(super) struct BlockColumn<'a, T> {
    n: usize,
    stride: usize,
    start: usize,
    /// Blocks on the diagonal from this one on.
    blocks: &'a mut [T],
    sums: &'a mut [T],
}

impl<T: Float> BlockColumn<'_, T> {
    /// Forms block column k of L in place, in `rows`, those of the square from its own block row on. What is above the diagonal is not
    /// touched. False when a pivot is not positive.
    ///
    /// All steps take 1/3 n^3 operations, all but n * SIDE^2 of them in products whose operands are contiguous along the sum.
    pub(super) fn take(self, rows: &mut [T]) -> bool {
        let Self { n, stride, start, blocks, sums } = self;
        if start >= n {
            return true;
        }
        let side = SIDE.min(n - start);
        let (block, later) = blocks.split_at_mut(AREA);
        let inverse = block_ref(block, side);
        let (panel, below) = rows.split_at_mut(side * stride);
        let panel = MatRef::from_row_major_slice_with_stride(panel, side, start, stride);
        let rows = below.par_chunks_mut(SIDE * stride).zip(later.par_chunks_mut(AREA));
        let rows = rows.zip(sums.par_chunks_mut(AREA));
        let positive = rows.enumerate().with_max_len(1).map(|(row, ((rows, block), sum))| {
            let height = rows.len().div_ceil(stride);
            let sum = &mut sum[..height * side];
            for (sum, row) in sum.chunks_exact_mut(side).zip(rows.chunks(stride)) {
                sum.copy_from_slice(&row[start..start + side]);
            }
            let mut sum = MatMut::from_row_major_slice_mut(sum, height, side);
            let (left, right) = rows_mut(rows, height, stride).split_at_col_mut(start);
            let left = left.into_const();
            let (mut target, later) = right.split_at_col_mut(side);
            // A_ik - sum_{t < k} L_it L_kt^T, then its product with L_kk^-T is L_ik.
            matmul(sum.as_mut(), Accum::Add, left, panel.transpose(), -T::ONE, Par::Seq);
            lower_times(target.as_mut().transpose_mut(), inverse, sum.as_ref().transpose(), T::ONE);
            let done = target.into_const();
            let on_diagonal = block_mut(block, height);
            matmul(on_diagonal, Accum::Add, done, done.transpose(), -T::ONE, Par::Seq);
            // The next block on the diagonal is complete: its factor need not wait for the rows below.
            row > 0 || invert_factor(block, later.subcols_mut(0, height)).is_some()
        });
        positive.reduce(|| true, |a, b| a && b)
    }
}

/// The lower triangles of the blocks on the diagonal, each in a zeroed [`SIDE`] x [`SIDE`] matrix.
fn diagonal_blocks<T: Float>(square: &[T], n: usize, stride: usize) -> Vec<T> {
    let mut blocks = vec![T::ZERO; n.div_ceil(SIDE) * AREA];
    for (k, block) in blocks.chunks_exact_mut(AREA).enumerate() {
        let start = k * SIDE;
        for (i, row) in block.chunks_exact_mut(SIDE).take(n - start).enumerate() {
            let from = (start + i) * stride + start;
            row[..=i].copy_from_slice(&square[from..=from + i]);
        }
    }
    blocks
}

/// Replaces a block on the diagonal by the inverse of its Cholesky factor, and writes the factor to the lower triangle of `place`.
fn invert_factor<T: Float>(block: &mut [T], mut place: MatMut<'_, T>) -> Option<()> {
    let side = place.nrows();
    let mut factor = block_mut(block, side);
    let mut memory = MemBuffer::new(cholesky_in_place_scratch::<T>(side, Par::Seq, Spec::default()));
    let stack = MemStack::new(&mut memory);
    cholesky_in_place(factor.as_mut(), Default::default(), Par::Seq, stack, Spec::default()).ok()?;
    for j in 0..side {
        place.rb_mut().col_mut(j).subrows_mut(j, side - j).copy_from(factor.rb().col(j).subrows(j, side - j));
    }
    let mut inverse = vec![T::ZERO; AREA];
    invert_lower_triangular(block_mut(&mut inverse, side), factor.as_ref(), Par::Seq);
    let positive = |i: usize| inverse[i * SIDE + i] > T::ZERO && inverse[i * SIDE + i].is_finite_number();
    block.copy_from_slice(&inverse);
    (0..side).all(positive).then_some(())
}

/// `target` = `factor` * `lower` * `right`, with `lower` a lower triangle: the quarter of it that is surely zero is left out.
pub(super) fn lower_times<T: Float>(
    target: MatMut<'_, T>,
    lower: MatRef<'_, T>,
    right: MatRef<'_, T>,
    factor: T,
) {
    let half = lower.nrows() / 2;
    let (top, bottom) = target.split_at_row_mut(half);
    let corner = lower.submatrix(0, 0, half, half);
    matmul(top, Accum::Replace, corner, right.subrows(0, half), factor, Par::Seq);
    let below = lower.subrows(half, lower.nrows() - half);
    matmul(bottom, Accum::Replace, below, right, factor, Par::Seq);
}

pub(super) fn block_ref<T: Float>(block: &[T], side: usize) -> MatRef<'_, T> {
    MatRef::from_row_major_slice_with_stride(block, SIDE, SIDE, SIDE).submatrix(0, 0, side, side)
}

fn block_mut<T: Float>(block: &mut [T], side: usize) -> MatMut<'_, T> {
    MatMut::from_row_major_slice_mut(block, SIDE, SIDE).submatrix_mut(0, 0, side, side)
}

/// `rows` as `height` rows of `stride` values.
pub(super) fn rows_mut<T>(rows: &mut [T], height: usize, stride: usize) -> MatMut<'_, T> {
    MatMut::from_row_major_slice_mut(&mut rows[..height * stride], height, stride)
}
