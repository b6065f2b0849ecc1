//! Optimal Brain Surgeon over the columns of a linear, blocked for the cache and threaded over rows.

use std::cell::RefCell;
use std::mem;

use bytemuck::Zeroable;
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use obsdiff_proto::Target;
use rayon::prelude::*;

use super::columns::{BlockRule, prune};
use super::near::{Bounds, NearKeys};
use super::phases::in_phases;
use super::select::{Limit, Scored, limit};
use super::span::Span;
use super::strips::{LANES, StripColumn, exchange, load, values, values_mut};
use super::{BLOCK, Factor, SolveError, check};

/// Blocks that are brought up to date together.
pub(super) const SPAN: usize = 4;

/// Optimal Brain Surgeon, and the memory it works in, which stays from one linear to the next: to touch new memory each time would
/// take a tenth of the time and more. It has as many values as the largest weight so far, and some blocks of columns.
#[derive(Debug, Default)]
pub struct Obs {
    memory: Vec<StripState>,
    span: Span,
}

impl Obs {
    /// Prunes `weight` (rows x n, row-major) in place and moves the weights that stay so that the linear's outputs change least.
    ///
    /// Columns go left to right in blocks of [`BLOCK`], or of as many whole groups as fit it for N:M. A weight's score is (w / U_jj)^2
    /// with w as updated so far: at the start of its block for unstructured targets, of its group for N:M. Unstructured targets
    /// prune exactly floor(ratio * weights) of each block over all rows, N:M exactly N of each group of a row; ties go by (column,
    /// row). Columns that are dead become 0, unless nothing is to go at all. The method is that of arXiv 2510.06751, after SparseGPT (arXiv
    /// 2301.00774).
    ///
    /// A block B is brought up to date when its turn comes. With D the change of the columns A to its left, and H = C C^T, what costs
    /// least in all columns not yet pruned is dW_B = -D X_AB with X_AB = C_AB U_BB, where U_BB is the inverse of C_BB. The published code
    /// gets the same from the errors of pruned weights and the factor of the inverse of H, which is not formed here (for quantization,
    /// arXiv 2507.18553 shows why). Within a block, errors are spread by U_BB as published. The changes are kept, as many values as the
    /// weight has.
    ///
    /// rows * n^2 operations in products, n^2 * block for X, rows * n * block in the column loop. Results do not depend on the number of
    /// threads.
    ///
    /// # Errors
    /// When the weight does not fit the factor or is not finite, or the target cannot be met.
    pub fn prune(&mut self, weight: &mut [f32], factor: &Factor, target: &Target) -> Result<(), SolveError> {
        let n = factor.width();
        check(weight, n, target)?;
        if prunes_nothing(target, weight.len()) {
            return Ok(());
        }
        for j in factor.dead() {
            weight.chunks_exact_mut(n).for_each(|row| row[j] = 0.0);
        }
        let Self { memory, span } = self;
        let rows = weight.chunks_mut(LANES * n);
        memory.resize_with(memory.len().max(rows.len()), StripState::default);
        // What is large is allocated here: memory that a thread of the pool allocates stays with that thread.
        let mut strips: Vec<_> = rows.zip(memory).map(|(rows, memory)| Strip::new(rows, n, memory)).collect();
        // Within the pool from here on: entering it for each of a block's steps would take as long as the step.
        rayon::scope(|_| match *target {
            Target::Unstructured { ratio } => prune_share(&mut strips, span, factor, ratio),
            Target::NToM { n, m } => prune_groups(&mut strips, span, factor, n, m),
            // Refused by the check.
            Target::Structured { .. } => (),
        });
        Ok(())
    }
}

/// Prunes floor(ratio * weights) of each block.
fn prune_share(strips: &mut [Strip<'_>], span: &mut Span, factor: &Factor, ratio: f64) {
    let n = factor.width();
    span.begin(n, BLOCK, SPAN);
    for first in (0..n).step_by(SPAN * BLOCK) {
        span.move_to(factor, first..n.min(first + SPAN * BLOCK));
        prune_span(strips, span, ratio);
    }
}

/// What each strip knows about all strips.
#[derive(Clone, Copy, Default)]
struct SharedBounds {
    bounds: Bounds,
    limit: Limit,
}

/// The same in the blocks of one span, in two phases for each block: the rows bring it up to date, having pruned the block before it,
/// and then look for keys near its limit. After each phase, one thread gives all of them the bounds that follow from their samples, or
/// the limit that follows from those keys.
fn prune_span(strips: &mut [Strip<'_>], span: &Span, ratio: f64) {
    let rows: usize = strips.iter().map(Strip::height).sum();
    let lanes = strips.len() * LANES;
    let starts: Vec<usize> = span.starts().collect();
    let work =
        |phase: usize, s: usize, strip: &mut Strip<'_>, SharedBounds { bounds, limit }: SharedBounds| {
            if !phase.is_multiple_of(2) {
                strip.look(span, bounds);
                return;
            }
            if let Some(block) = phase.checked_sub(2) {
                StripScratch::of(span.part(starts[block / 2]).columns, |scratch| {
                    limit.keys(&strip.scored(span), s * LANES, &mut scratch.keys);
                    strip.prune(span, scratch, BlockRule::Below(limit.below()));
                });
            }
            if phase / 2 < starts.len() {
                strip.settle(span);
                strip.take_sample(s, span, lanes);
            }
        };
    let between = |phase: usize, strips: &[&mut Strip<'_>]| {
        let columns = span.part(starts[phase / 2]).columns;
        let count = share(ratio, rows * columns);
        if phase.is_multiple_of(2) {
            let sample =
                strips.iter().map(|strip| strip.memory.sample.as_slice()).collect::<Vec<_>>().concat();
            let bounds = Bounds::of(sample, count as f64 / (lanes * columns) as f64);
            return SharedBounds { bounds, ..SharedBounds::default() };
        }
        let scored: Vec<_> = strips.iter().map(|strip| strip.scored(span)).collect();
        let near: Vec<_> = strips.iter().map(|strip| &strip.memory.near).collect();
        SharedBounds { limit: limit(&scored, &near, count), ..SharedBounds::default() }
    };
    in_phases(strips, 2 * starts.len() + 1, SharedBounds::default(), work, between);
}

/// Prunes `pruned` of each `m` consecutive columns of a row. Rows do not wait for each other, but they go through a span together,
/// so that its part of X stays in a cache.
fn prune_groups(strips: &mut [Strip<'_>], span: &mut Span, factor: &Factor, pruned: usize, m: usize) {
    let n = factor.width();
    // Groups never straddle two blocks.
    let columns = m.saturating_mul((BLOCK / m).max(1)).min(n);
    let rule = BlockRule::NToM { n: pruned, m };
    span.begin(n, columns, SPAN);
    for first in (0..n).step_by(columns * SPAN) {
        span.move_to(factor, first..n.min(first + columns * SPAN));
        strips.par_iter_mut().for_each(|strip| {
            for start in span.starts() {
                strip.settle(span);
                StripScratch::of(span.part(start).columns, |scratch| strip.prune(span, scratch, rule));
            }
        });
    }
}

/// floor(ratio * weights).
pub(crate) fn share(ratio: f64, weights: usize) -> usize {
    ((ratio * weights as f64) as usize).min(weights)
}

/// Whether a target leaves so many weights as they are.
pub(crate) fn prunes_nothing(target: &Target, weights: usize) -> bool {
    match *target {
        Target::Unstructured { ratio } => share(ratio, weights) == 0,
        Target::NToM { n, .. } => n == 0,
        Target::Structured { .. } => false,
    }
}

/// What pruning a block of a strip writes to.
#[derive(Default)]
struct StripScratch {
    keys: Vec<u32>,
    errors: Vec<StripColumn>,
}

thread_local! {
    /// Each thread keeps its own: it stays in the thread's caches, and touching new memory for each block would take as long as the
    /// block.
    static SCRATCH: RefCell<StripScratch> = RefCell::default();
}

impl StripScratch {
    /// Works with room for a block of so many columns.
    fn of(columns: usize, work: impl FnOnce(&mut Self)) {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.errors.resize(columns, StripColumn::zeroed());
            scratch.keys.resize(columns * LANES, 0);
            work(scratch);
        });
    }
}

/// What a strip keeps of its rows.
#[derive(Debug, Default)]
struct StripState {
    /// dW of the columns pruned so far.
    changes: Vec<StripColumn>,
    /// The weights of a span, up to date from its beginning to the block that is next.
    weight: Vec<StripColumn>,
    /// Some of that block's keys.
    sample: Vec<u32>,
    /// Those that are near its limit.
    near: NearKeys,
}

/// A strip of rows on its way through the blocks.
struct Strip<'a> {
    /// At most [`LANES`] rows of n values.
    rows: &'a mut [f32],
    n: usize,
    memory: &'a mut StripState,
}

impl<'a> Strip<'a> {
    fn new(rows: &'a mut [f32], n: usize, memory: &'a mut StripState) -> Self {
        // Not filled with zeros: a block's changes come in as it is pruned.
        memory.changes.clear();
        memory.changes.reserve(n);
        memory.weight.reserve(n.min(SPAN * BLOCK).saturating_sub(memory.weight.len()));
        Self { rows, n, memory }
    }

    fn height(&self) -> usize {
        self.rows.len() / self.n
    }

    /// The column where the next block starts.
    fn next(&self) -> usize {
        self.memory.changes.len()
    }

    fn scored<'b>(&'b self, span: &'b Span) -> Scored<'b> {
        let start = self.next();
        let weight = &self.memory.weight[span.within(start)];
        Scored { weight, rows: self.height(), reciprocal: &span.part(start).reciprocal }
    }

    /// Takes its part, that of the `s`-th strip, of a sample of the next block's keys, which have so many lanes.
    fn take_sample(&mut self, s: usize, span: &Span, lanes: usize) {
        let mut sample = mem::take(&mut self.memory.sample);
        sample.clear();
        let scored = self.scored(span);
        scored.sample(s, lanes * scored.weight.len(), &mut sample);
        self.memory.sample = sample;
    }

    /// Finds its keys near the limit of the next block.
    fn look(&mut self, span: &Span, bounds: Bounds) {
        self.memory.near = self.scored(span).near(bounds);
    }

    /// Brings the next block up to date. The first block of a span reads all its columns, and brings all of them up to date with the
    /// changes so far.
    fn settle(&mut self, span: &Span) {
        let (start, columns) = (self.next(), span.columns());
        let StripState { changes, weight, .. } = &mut *self.memory;
        if start == columns.start {
            weight.resize(columns.len(), StripColumn::zeroed());
            for (block, weight) in (start..).step_by(BLOCK).zip(weight.chunks_mut(BLOCK)) {
                load(self.rows, self.n, block, weight);
            }
            take_off(weight, changes, span.x(0..start, 0..columns.len()));
        } else {
            let within = span.within(start);
            let x = span.x(columns.start..start, within.clone());
            take_off(&mut weight[within], &changes[columns.start..], x);
        }
    }

    /// Prunes that block, writes it back, and keeps its changes.
    fn prune(&mut self, span: &Span, scratch: &mut StripScratch, rule: BlockRule) {
        let start = self.next();
        let StripState { changes, weight, .. } = &mut *self.memory;
        let StripScratch { keys, errors } = scratch;
        let weight = &mut weight[span.within(start)];
        prune(values_mut(weight), values_mut(errors), keys, span.part(start), rule);
        exchange(weight, self.rows, self.n, start, errors);
        changes.extend_from_slice(errors);
    }
}

/// Takes `changes` (k columns) times `x` (k rows) off the columns of a weight.
fn take_off(weight: &mut [StripColumn], changes: &[StripColumn], x: MatRef<'_, f32>) {
    let weight = MatMut::from_row_major_slice_mut(values_mut(weight), x.ncols(), LANES);
    let changes = MatRef::from_row_major_slice(values(changes), x.nrows(), LANES);
    matmul(weight, Accum::Add, x.transpose(), changes, -1.0, Par::Seq);
}
