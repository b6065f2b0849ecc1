//! Optimal Brain Surgeon over the columns of a linear, blocked for the cache and threaded over rows.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use obsdiff_proto::Target;
use rayon::prelude::*;

use super::columns::{BlockFactor, Rule, keys, prune};
use super::factor::stride;
use super::select::{leave_out, limit};
use super::strips::{Aligned, LANES, strips, unite};
use super::{BLOCK, Factor, SolveError, check};

/// Prunes `weight` (rows x n, row-major) in place and moves the weights that stay so that the linear's outputs change least.
///
/// Columns go left to right in blocks of [`BLOCK`], or of as many whole groups as fit it for N:M. A weight's score is (w / U_jj)^2
/// with w as updated so far: at the start of its block for unstructured targets, of its group for N:M. Unstructured targets
/// prune exactly floor(ratio * weights) of each block over all rows, N:M exactly N of each group of a row; ties go by (column,
/// row). Columns that are dead become 0. The method is that of arXiv 2510.06751, after SparseGPT (arXiv 2301.00774).
///
/// rows * n^2 operations in products, rows * n * block in the column loop. Results do not depend on the number of threads.
///
/// # Errors
/// When the weight does not fit the factor or is not finite, or the target cannot be met.
pub fn obs(weight: &mut [f32], factor: &Factor, target: &Target) -> Result<(), SolveError> {
    let n = factor.width();
    check(weight, n, target)?;
    for j in factor.dead() {
        weight.chunks_exact_mut(n).for_each(|row| row[j] = 0.0);
    }
    if matches!(target, Target::Unstructured { ratio } if *ratio == 0.0) {
        return Ok(());
    }
    let rows = weight.len() / n;
    let columns = block_columns(target).min(n);
    let mut tasks: Vec<Strip> = strips(weight, n)
        .into_iter()
        .enumerate()
        .map(|(s, weight)| Strip {
            weight,
            rows: LANES.min(rows - s * LANES),
            errors: Aligned::zeros(columns * LANES),
            keys: vec![0; columns * LANES],
        })
        .collect();
    for start in (0..n).step_by(columns) {
        let end = n.min(start + columns);
        let block = block_factor(factor, start, end);
        let rule = match *target {
            Target::NToM { n, m } => Rule::NToM { n, m },
            Target::Unstructured { ratio } => {
                tasks.par_iter_mut().for_each(|strip| strip.score(start, &block));
                let mut keys: Vec<_> =
                    tasks.iter_mut().map(|s| &mut s.keys[..(end - start) * LANES]).collect();
                Rule::Below(limit(&mut keys, share(ratio, rows * (end - start))))
            }
        };
        tasks.par_iter_mut().for_each(|strip| {
            strip.prune(start, &block, rule);
            strip.spread(factor, start, end);
        });
    }
    let strips: Vec<Aligned> = tasks.into_iter().map(|strip| strip.weight).collect();
    unite(&strips, n, weight);
    Ok(())
}

/// floor(ratio * weights).
pub(super) fn share(ratio: f64, weights: usize) -> usize {
    ((ratio * weights as f64) as usize).min(weights)
}

/// Columns of a block: groups of N:M never straddle two.
fn block_columns(target: &Target) -> usize {
    match *target {
        Target::Unstructured { .. } => BLOCK,
        Target::NToM { m, .. } => m.saturating_mul((BLOCK / m).max(1)),
    }
}

fn block_factor(factor: &Factor, start: usize, end: usize) -> BlockFactor {
    let columns = end - start;
    let mut u = vec![0.0; columns * columns];
    for j in 0..columns {
        for i in 0..j {
            u[j * columns + i] = factor.u(start + i, start + j);
        }
    }
    let reciprocal = (start..end).map(|j| 1.0 / factor.u(j, j)).collect();
    BlockFactor { columns, u, reciprocal }
}

/// A strip of rows on its way through the blocks.
struct Strip {
    /// n x [`LANES`].
    weight: Aligned,
    /// Rows that are the weight's own.
    rows: usize,
    /// Errors of the current block, columns x [`LANES`].
    errors: Aligned,
    /// Keys of the current block, columns x [`LANES`].
    keys: Vec<u32>,
}

impl Strip {
    fn score(&mut self, start: usize, block: &BlockFactor) {
        let end = start + block.columns;
        let scores = &mut self.keys[..block.columns * LANES];
        keys(&self.weight.values()[start * LANES..end * LANES], block, scores);
        leave_out(scores, self.rows);
    }

    fn prune(&mut self, start: usize, block: &BlockFactor, rule: Rule) {
        let size = block.columns * LANES;
        let weight = &mut self.weight.values_mut()[start * LANES..start * LANES + size];
        prune(weight, &mut self.errors.values_mut()[..size], &mut self.keys[..size], block, rule);
    }

    /// Takes the errors of block `start..end`, times U, off the columns to the right of it.
    fn spread(&mut self, factor: &Factor, start: usize, end: usize) {
        let n = factor.width();
        let (columns, later) = (end - start, n - end);
        let right =
            MatMut::from_row_major_slice_mut(&mut self.weight.values_mut()[end * LANES..], later, LANES);
        let errors = &self.errors.values()[..columns * LANES];
        let errors = MatRef::from_row_major_slice(errors, columns, LANES);
        // The factor is stored reversed: its row n-1-i holds U_ij at n-1-j.
        let square = MatRef::from_row_major_slice_with_stride(factor.square(), n, n, stride(n));
        let u = square.submatrix(later, 0, columns, later);
        matmul(right.reverse_rows_mut(), Accum::Add, u.transpose(), errors.reverse_rows(), -1.0, Par::Seq);
    }
}
