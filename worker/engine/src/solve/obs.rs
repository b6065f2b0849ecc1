//! Optimal Brain Surgeon over the columns of a linear, blocked for the cache and threaded over rows.

use std::mem;
use std::ops::Range;

use bytemuck::Zeroable;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use obsdiff_proto::Target;
use rayon::prelude::*;

use super::columns::{BlockFactor, Rule, prune};
use super::select::{Bounds, Scored, limit};
use super::strips::{Column, LANES, load, store, values, values_mut};
use super::{BLOCK, Factor, SolveError, check};

/// Prunes `weight` (rows x n, row-major) in place and moves the weights that stay so that the linear's outputs change least.
///
/// Columns go left to right in blocks of [`BLOCK`], or of as many whole groups as fit it for N:M. A weight's score is (w / U_jj)^2
/// with w as updated so far: at the start of its block for unstructured targets, of its group for N:M. Unstructured targets
/// prune exactly floor(ratio * weights) of each block over all rows, N:M exactly N of each group of a row; ties go by (column,
/// row). Columns that are dead become 0. The method is that of arXiv 2510.06751, after SparseGPT (arXiv 2301.00774).
///
/// A block is brought up to date when its turn comes, by one product of all errors to its left with its part of U: the weight is
/// read and written once. The errors are kept, as many values as the weight has.
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
    // What is large is allocated here: memory that a thread of the pool allocates stays with that thread.
    let mut strips: Vec<_> = weight.chunks_mut(LANES * n).map(|rows| Strip::new(rows, n)).collect();
    // Within the pool from here on: entering it anew for each of a block's steps would take as long as the step.
    rayon::scope(|_| match *target {
        Target::Unstructured { ratio } if ratio > 0.0 => prune_share(&mut strips, factor, ratio),
        Target::NToM { n, m } => prune_groups(&mut strips, factor, n, m),
        // Nothing to prune; structured targets were refused by the check.
        Target::Unstructured { .. } | Target::Structured { .. } => (),
    });
    Ok(())
}

/// Prunes floor(ratio * weights) of each block.
///
/// All rows of a block wait for its limit, which takes one thread a moment twice: for bounds from a sample of the block's keys, and for the
/// limit from the keys within them. During the first the others bring the next block up to date with the errors of those before;
/// only the errors of this one are left for afterwards.
fn prune_share(strips: &mut [Strip<'_>], factor: &Factor, ratio: f64) {
    let n = factor.width();
    let rows: usize = strips.iter().map(Strip::height).sum();
    let lanes = strips.len() * LANES;
    let columns = |start: usize| start.min(n)..n.min(start + BLOCK);
    let [mut blocks, mut next] = [(); 2].map(|()| vec![Block::default(); strips.len()]);
    let fetch = |strips: &mut [Strip<'_>], next: &mut [Block], columns: Range<usize>, end: usize| {
        let part = BlockFactor::of(factor, columns.clone());
        // Backwards: who looks for the bounds prunes from the first strip on, and finds what it fetched in its own cache.
        let strips = strips.par_iter_mut().zip(next).rev();
        strips.for_each(|(strip, next)| strip.fetch(&mut next.weight, columns.clone(), end, factor));
        part
    };
    let mut part = fetch(strips, &mut blocks, columns(0), 0);
    let first = strips.par_iter().zip(&mut blocks);
    first.for_each(|(strip, block)| block.sample(strip.height(), &part, lanes));
    for start in (0..n).step_by(BLOCK) {
        let (end, after) = (columns(start).end, columns(start + BLOCK));
        let count = share(ratio, rows * (end - start));
        let bounds = || {
            let sample: Vec<&[u32]> = blocks.iter().map(|block| block.sample.as_slice()).collect();
            Bounds::of(sample.concat(), count as f64 / (lanes * (end - start)) as f64)
        };
        let (bounds, following) = rayon::join(bounds, || fetch(strips, &mut next, after.clone(), start));
        let scored: Vec<_> = blocks.iter().zip(&*strips).map(|(b, s)| b.scored(s.height(), &part)).collect();
        let near: Vec<_> = scored.par_iter().map(|scored| scored.near(bounds)).collect();
        let limit = limit(&scored, &near, count);
        let all = strips.par_iter_mut().zip(&mut blocks).zip(&mut next).enumerate();
        all.for_each_init(Vec::new, |keys, (s, ((strip, block), next))| {
            keys.resize(block.weight.len() * LANES, 0);
            limit.keys(&block.scored(strip.height(), &part), s * LANES, keys);
            strip.prune(&mut block.weight, &part, keys, Rule::Below(limit.below()));
            strip.update(&mut next.weight, after.clone(), start, factor);
            next.sample(strip.height(), &following, lanes);
        });
        mem::swap(&mut blocks, &mut next);
        part = following;
    }
}

/// A strip's block that waits for its limit.
#[derive(Clone, Default)]
struct Block {
    weight: Vec<Column>,
    /// Some of its keys.
    sample: Vec<u32>,
}

impl Block {
    fn scored<'a>(&'a self, rows: usize, part: &'a BlockFactor) -> Scored<'a> {
        Scored { weight: &self.weight, rows, reciprocal: &part.reciprocal }
    }

    /// Takes its part of the sample of a block of so many lanes.
    fn sample(&mut self, rows: usize, part: &BlockFactor, lanes: usize) {
        let mut sample = mem::take(&mut self.sample);
        sample.clear();
        self.scored(rows, part).sample(lanes * self.weight.len(), &mut sample);
        self.sample = sample;
    }
}

/// Prunes `pruned` of each `m` consecutive columns of a row. Rows do not wait for each other, but they go through a block together,
/// so that its part of U stays in a cache.
fn prune_groups(strips: &mut [Strip<'_>], factor: &Factor, pruned: usize, m: usize) {
    let n = factor.width();
    // Groups never straddle two blocks.
    let columns = m.saturating_mul((BLOCK / m).max(1)).min(n);
    for start in (0..n).step_by(columns) {
        let columns = start..n.min(start + columns);
        let part = BlockFactor::of(factor, columns.clone());
        strips.par_iter_mut().for_each_init(
            || (Vec::new(), Vec::new()),
            |(block, ranks), strip| {
                ranks.resize(columns.len() * LANES, 0);
                strip.fetch(block, columns.clone(), start, factor);
                strip.prune(block, &part, ranks, Rule::NToM { n: pruned, m });
            },
        );
    }
}

/// floor(ratio * weights).
pub(super) fn share(ratio: f64, weights: usize) -> usize {
    ((ratio * weights as f64) as usize).min(weights)
}

/// A strip of rows on its way through the blocks.
struct Strip<'a> {
    /// At most [`LANES`] rows of n values.
    rows: &'a mut [f32],
    n: usize,
    /// Errors of the columns pruned so far.
    errors: Vec<Column>,
}

impl<'a> Strip<'a> {
    fn new(rows: &'a mut [f32], n: usize) -> Self {
        // Not filled with zeros: a block's errors come in as it is pruned.
        Self { rows, n, errors: Vec::with_capacity(n) }
    }

    fn height(&self) -> usize {
        self.rows.len() / self.n
    }

    /// Reads `block` from `columns`, and takes the errors of the columns before `end` off its weights.
    fn fetch(&self, block: &mut Vec<Column>, columns: Range<usize>, end: usize, factor: &Factor) {
        block.resize(columns.len(), Column::zeroed());
        load(self.rows, self.n, columns.start, block);
        take_off(block, &self.errors[..end], factor.block_of_u(0..end, columns));
    }

    /// Takes the errors of the columns from `start` on off the weights of a block of `columns`.
    fn update(&self, block: &mut [Column], columns: Range<usize>, start: usize, factor: &Factor) {
        take_off(block, &self.errors[start..], factor.block_of_u(start..self.errors.len(), columns));
    }

    /// Prunes the next block, writes it back, and keeps its errors.
    fn prune(&mut self, block: &mut [Column], part: &BlockFactor, keys: &mut [u32], rule: Rule) {
        let start = self.errors.len();
        self.errors.resize(start + block.len(), Column::zeroed());
        prune(values_mut(block), values_mut(&mut self.errors[start..]), keys, part, rule);
        store(block, self.rows, self.n, start);
    }
}

/// Takes `errors` (k columns) times `u` (k x block) off a block of weights.
fn take_off(block: &mut [Column], errors: &[Column], u: MatRef<'_, f32>) {
    let target = MatMut::from_row_major_slice_mut(values_mut(block), u.ncols(), LANES);
    let errors = MatRef::from_row_major_slice(values(errors), u.nrows(), LANES);
    matmul(target, Accum::Add, u.transpose(), errors, -1.0, Par::Seq);
}
