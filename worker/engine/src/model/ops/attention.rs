//! Softmax attention over several token streams, one batch item and head at a time.

use faer::linalg::matmul::matmul;
use faer::prelude::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::simd::{exp, max, sum, vectorized};

/// Queries whose scores are in cache together.
const QUERIES: usize = 128;

/// One stream's queries, keys and values, each `(batch * tokens) x width` with the heads side by side.
#[derive(Clone, Copy)]
pub(super) struct Stream<'a> {
    pub(super) queries: Option<&'a [f32]>,
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    /// Tokens of a batch item.
    pub(super) tokens: usize,
}

/// Sizes that the streams share.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) batch: usize,
    pub(super) heads: usize,
    /// Features of a head.
    pub(super) head: usize,
}

/// Buffers of one thread.
#[derive(Default)]
struct Scratch {
    keys: Vec<f32>,
    values: Vec<f32>,
    queries: Vec<f32>,
    scores: Vec<f32>,
    factors: Vec<f32>,
    output: Vec<f32>,
}

/// Attends each stream's queries to all streams' keys and writes to `outputs`, one for each stream with queries and of their
/// shape. 4 batch queries keys width flops; beside the outputs it needs, in each thread, the keys and values of one head and
/// [`QUERIES`] rows of scores.
pub(super) fn attention(outputs: Vec<&mut [f32]>, streams: &[Stream<'_>], sizes: Sizes) {
    let asking: Vec<_> =
        streams.iter().filter_map(|s| s.queries.map(|queries| (queries, s.tokens))).collect();
    let outputs = outputs.into_iter().zip(&asking).map(|(out, (_, tokens))| split(out, *tokens, sizes));
    let mut work: Vec<Vec<MatMut<'_, f32>>> = Vec::new();
    work.resize_with(sizes.batch * sizes.heads, Vec::new);
    for parts in outputs {
        work.iter_mut().zip(parts).for_each(|(work, part)| work.push(part));
    }
    work.into_par_iter().enumerate().for_each_init(Scratch::default, |scratch, (index, outputs)| {
        let head = Head { item: index / sizes.heads, head: index % sizes.heads, sizes };
        scratch.keys.clear();
        scratch.values.clear();
        for stream in streams {
            head.gather(&mut scratch.keys, stream.keys, 0..stream.tokens, stream.tokens);
            head.gather(&mut scratch.values, stream.values, 0..stream.tokens, stream.tokens);
        }
        for ((queries, tokens), output) in asking.iter().zip(outputs) {
            head.attend(output, queries, *tokens, scratch);
        }
    });
}

/// An output as one matrix for each batch item and head.
fn split(out: &mut [f32], tokens: usize, sizes: Sizes) -> Vec<MatMut<'_, f32>> {
    let width = sizes.heads * sizes.head;
    let mut parts = Vec::with_capacity(sizes.batch * sizes.heads);
    for item in out.chunks_exact_mut(tokens * width) {
        let mut rest = MatMut::from_row_major_slice_mut(item, tokens, width);
        for _ in 0..sizes.heads {
            let (part, right) = rest.split_at_col_mut(sizes.head);
            parts.push(part);
            rest = right;
        }
    }
    parts
}

/// One batch item and head.
#[derive(Clone, Copy)]
struct Head {
    item: usize,
    head: usize,
    sizes: Sizes,
}

impl Head {
    /// Appends this head's features of some of the item's tokens, token after token.
    fn gather(&self, to: &mut Vec<f32>, from: &[f32], tokens: std::ops::Range<usize>, of: usize) {
        let Sizes { heads, head, .. } = self.sizes;
        let width = heads * head;
        for token in tokens {
            let start = (self.item * of + token) * width + self.head * head;
            to.extend_from_slice(&from[start..start + head]);
        }
    }

    fn attend(&self, mut output: MatMut<'_, f32>, queries: &[f32], tokens: usize, scratch: &mut Scratch) {
        let d = self.sizes.head;
        let Scratch { keys, values, queries: block, scores, factors, output: attended } = scratch;
        let count = keys.len() / d;
        let scale = 1.0 / (d as f32).sqrt();
        for start in (0..tokens).step_by(QUERIES) {
            let rows = QUERIES.min(tokens - start);
            block.clear();
            self.gather(block, queries, start..start + rows, tokens);
            scores.resize(rows * count, 0.0);
            factors.resize(rows, 0.0);
            attended.resize(rows * d, 0.0);
            let (keys, values) = (
                MatRef::from_row_major_slice(keys, count, d),
                MatRef::from_row_major_slice(values, count, d),
            );
            let block = MatRef::from_row_major_slice(block, rows, d);
            let product = MatMut::from_row_major_slice_mut(scores, rows, count);
            matmul(product, Accum::Replace, block, keys.transpose(), 1.0, Par::Seq);
            vectorized(|| softmax(scores, count, scale, factors));
            let shares = MatRef::from_row_major_slice(scores, rows, count);
            let product = MatMut::from_row_major_slice_mut(attended, rows, d);
            matmul(product, Accum::Replace, shares, values, 1.0, Par::Seq);
            vectorized(|| scatter(output.rb_mut().subrows_mut(start, rows), attended, factors));
        }
    }
}

/// Turns rows of scores into e^(scale (score - largest)), and leaves one over each row's sum in `factors`.
#[inline(always)]
fn softmax(scores: &mut [f32], count: usize, scale: f32, factors: &mut [f32]) {
    for (row, factor) in scores.chunks_exact_mut(count).zip(factors) {
        let largest = max(row);
        row.iter_mut().for_each(|x| *x = exp(scale * (*x - largest)));
        *factor = 1.0 / sum(row, |x| x);
    }
}

#[inline(always)]
fn scatter(mut output: MatMut<'_, f32>, attended: &[f32], factors: &[f32]) {
    let d = output.ncols();
    for (row, (attended, factor)) in attended.chunks_exact(d).zip(factors).enumerate() {
        let Some(row) = output.rb_mut().row_mut(row).try_as_row_major_mut() else { return };
        row.as_slice_mut().iter_mut().zip(attended).for_each(|(out, x)| *out = x * factor);
    }
}
