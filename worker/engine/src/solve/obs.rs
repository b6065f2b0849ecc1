//! Optimal Brain Surgeon over the columns of a linear, blocked for the cache and threaded over rows.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use obsdiff_proto::Target;
use rayon::prelude::*;

use super::columns::{BlockFactor, Rule, keys, prune};
use super::select::{leave_out, limit};
use super::strips::{Aligned, LANES, strips, unite};
use super::{BLOCK, Factor, SolveError, check};

/// Columns that one product spreads errors to: their part of U stays in a core's cache from strip to strip.
const TILE: usize = 256;

/// Values between two rows of a tile of U: not a power of two, so that a column does not fall into a few cache sets.
const TILE_ROW: usize = TILE + 16;

/// Strips that take their turn with a part of U, at most.
const GROUP: usize = 8;

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
    let mut tiles = vec![0.0; n.saturating_sub(columns).div_ceil(TILE) * columns * TILE_ROW];
    for start in (0..n).step_by(columns) {
        let end = n.min(start + columns);
        let tiles = &mut tiles[..(n - end).div_ceil(TILE) * columns * TILE_ROW];
        lay_out(factor, start, end, tiles);
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
        // Groups only decide how long a part of U stays in a core's cache, never what is computed.
        let group = (tasks.len() / (2 * rayon::current_num_threads())).clamp(1, GROUP);
        tasks.par_chunks_mut(group).for_each(|strips| {
            strips.iter_mut().for_each(|strip| strip.prune(start, &block, rule));
            for (tile, first) in tiles.chunks_exact(columns * TILE_ROW).zip((end..n).step_by(TILE)) {
                strips
                    .iter_mut()
                    .for_each(|strip| strip.spread(tile, end - start, first, TILE.min(n - first)));
            }
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
    for i in 0..columns {
        for j in i + 1..columns {
            u[j * columns + i] = factor.u(start + i, start + j);
        }
    }
    let reciprocal = (start..end).map(|j| 1.0 / factor.u(j, j)).collect();
    BlockFactor { columns, u, reciprocal }
}

/// Copies the rows of U of block `start..end`, from column `end` on, to `tiles` of [`TILE`] columns: the products read each of them
/// once for every strip, and the factor holds them far apart and reversed.
fn lay_out(factor: &Factor, start: usize, end: usize, tiles: &mut [f32]) {
    let n = factor.width();
    let tile = tiles.len() / (n - end).div_ceil(TILE).max(1);
    if tile == 0 {
        return;
    }
    tiles.par_chunks_exact_mut(tile).enumerate().for_each(|(t, tile)| {
        let first = end + t * TILE;
        let last = n.min(first + TILE);
        for (i, row) in (start..end).zip(tile.chunks_exact_mut(TILE_ROW)) {
            let from = factor.row_of_u(i, first, last);
            row.iter_mut().zip(from.iter().rev()).for_each(|(to, u)| *to = *u);
        }
    });
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

    /// Takes the errors of a block of `columns` columns, times a tile of U, off the weights of columns `first..first + width`.
    fn spread(&mut self, tile: &[f32], columns: usize, first: usize, width: usize) {
        let right = &mut self.weight.values_mut()[first * LANES..(first + width) * LANES];
        let right = MatMut::from_row_major_slice_mut(right, width, LANES);
        let errors = MatRef::from_row_major_slice(&self.errors.values()[..columns * LANES], columns, LANES);
        let u = MatRef::from_row_major_slice_with_stride(tile, columns, TILE_ROW, TILE_ROW);
        matmul(right, Accum::Add, u.subcols(0, width).transpose(), errors, -1.0, Par::Seq);
    }
}
