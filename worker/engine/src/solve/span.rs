//! What OBS multiplies by, for the columns of a few blocks at a time.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::linalg::triangular_inverse::invert_lower_triangular;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::Factor;
use super::factor::stride;

/// Rows of X that one task forms.
const ROWS: usize = 256;

/// Consecutive blocks of columns, and what it takes to bring them up to date and to prune them.
#[derive(Debug, Default)]
pub(super) struct Span {
    columns: Range<usize>,
    /// Columns of a block; the last may have fewer.
    width: usize,
    /// X_ij for the span's columns j and all columns i left of j's block: X_AB = C_AB U_BB for a block B and the columns A left of it. Each
    /// column is contiguous, as products like it.
    x: Vec<f32>,
    /// Values between the starts of two columns of X.
    stride: usize,
    parts: Vec<BlockFactor>,
}

impl Span {
    /// Begins with no columns of n. It is to have at most `blocks` blocks of `width`.
    pub(super) fn begin(&mut self, n: usize, width: usize, blocks: usize) {
        (self.columns, self.width, self.stride) = (0..0, width, stride(n));
        self.x.resize(n.min(width.saturating_mul(blocks)) * self.stride, 0.0);
    }

    /// Moves to `columns`, which begin where a block does. 2 width operations for each value of X.
    pub(super) fn move_to(&mut self, factor: &Factor, columns: Range<usize>) {
        let starts: Vec<usize> = columns.clone().step_by(self.width).collect();
        let block = |start: usize| start..columns.end.min(start + self.width);
        self.parts = starts.par_iter().map(|&start| BlockFactor::of(factor, block(start))).collect();
        let x = &mut self.x[..columns.len() * self.stride];
        let x = MatMut::from_column_major_slice_mut(x, self.stride, columns.len());
        let blocks = x.par_col_chunks_mut(self.width).zip(&self.parts).zip(&starts);
        blocks.for_each(|((x, part), &start)| {
            let rows = x.subrows_mut(0, start).par_row_chunks_mut(ROWS);
            rows.enumerate().for_each(|(chunk, x)| {
                let first = chunk * ROWS;
                let c = factor.block_of_c(first..first + x.nrows(), block(start));
                matmul(x, Accum::Replace, c, part.transposed().transpose(), 1.0, Par::Seq);
            });
        });
        self.columns = columns;
    }

    pub(super) const fn columns(&self) -> &Range<usize> {
        &self.columns
    }

    /// The starts of its blocks.
    pub(super) fn starts(&self) -> impl Iterator<Item = usize> + use<> {
        self.columns.clone().step_by(self.width)
    }

    /// What pruning the block that starts at column `start` needs.
    pub(super) fn part(&self, start: usize) -> &BlockFactor {
        &self.parts[(start - self.columns.start) / self.width]
    }

    /// Where the columns of the block that starts at column `start` are among the span's.
    pub(super) fn within(&self, start: usize) -> Range<usize> {
        let first = start - self.columns.start;
        first..first + self.part(start).columns
    }

    /// X_ij for i in `rows` and the j that are `within` the span.
    pub(super) fn x(&self, rows: Range<usize>, within: Range<usize>) -> MatRef<'_, f32> {
        let x = &self.x[within.start * self.stride..within.end * self.stride];
        MatRef::from_column_major_slice(x, self.stride, within.len()).subrows(rows.start, rows.len())
    }
}

/// The part of U = C^-1 that pruning one block needs: the inverse of C's block on the diagonal.
#[derive(Debug)]
pub(super) struct BlockFactor {
    /// Columns of the block: b.
    pub(super) columns: usize,
    /// U_ij of block columns i <= j, at j * b + i; zeros for i > j.
    u: Vec<f32>,
    /// 1 / U_jj.
    pub(super) reciprocal: Vec<f32>,
}

impl BlockFactor {
    /// The part of U for a block of `columns`.
    fn of(factor: &Factor, columns: Range<usize>) -> Self {
        let b = columns.len();
        let reciprocal = columns.clone().map(|j| factor.c(j, j)).collect();
        let c = factor.block_of_c(columns.clone(), columns);
        let mut u = vec![0.0; b * b];
        invert_lower_triangular(MatMut::from_row_major_slice_mut(&mut u, b, b), c.transpose(), Par::Seq);
        Self { columns: b, u, reciprocal }
    }

    /// U_ij of column j for rows `from..to`.
    #[inline(always)]
    pub(super) fn row(&self, j: usize, from: usize, to: usize) -> &[f32] {
        &self.u[j * self.columns + from..j * self.columns + to]
    }

    /// The block of U, transposed: a lower triangle.
    fn transposed(&self) -> MatRef<'_, f32> {
        MatRef::from_row_major_slice(&self.u, self.columns, self.columns)
    }
}
