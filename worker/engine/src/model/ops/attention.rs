//! Softmax attention over several token streams, one batch item and head at a time.

use faer::MatMut;
use faer::prelude::ReborrowMut;
use rayon::prelude::*;

use super::product::{COLUMNS, Start, Strided, multiply};
use super::simd::{Kernel, exp_and_sum, max, vectorized};

/// Queries whose scores are in cache together.
const QUERIES: usize = 96;

/// One stream's queries, keys and values, each `(batch * tokens) x width` with the heads side by side.
#[derive(Clone, Copy)]
pub(super) struct AttentionStream<'a> {
    pub(super) queries: Option<&'a [f32]>,
    pub(super) keys: &'a [f32],
    pub(super) values: &'a [f32],
    /// Tokens of a batch item.
    pub(super) tokens: usize,
}

/// Sizes that the streams share.
#[derive(Clone, Copy)]
pub(super) struct AttentionSizes {
    pub(super) batch: usize,
    pub(super) heads: usize,
    /// Features of a head.
    pub(super) head: usize,
}

/// Buffers of one thread.
#[derive(Default)]
struct AttentionScratch {
    /// `head x tokens`, the tokens padded.
    keys: Vec<f32>,
    /// `tokens x head`, the features padded.
    values: Vec<f32>,
    /// `queries x tokens`, the tokens padded.
    scores: Vec<f32>,
    /// `queries x head`, the features padded.
    attended: Vec<f32>,
    /// One over the sum of each row of scores.
    factors: Vec<f32>,
}

/// Attends each stream's queries to all streams' keys and writes to `outputs`, one for each stream with queries and of their
/// shape. 4 batch queries keys width flops; beside the outputs it needs, in each thread, the keys and values of one head and
/// [`QUERIES`] rows of scores.
pub(super) fn attention(outputs: Vec<&mut [f32]>, streams: &[AttentionStream<'_>], sizes: AttentionSizes) {
    let asking: Vec<_> =
        streams.iter().filter_map(|s| s.queries.map(|queries| (queries, s.tokens))).collect();
    let mut work: Vec<Vec<MatMut<'_, f32>>> = Vec::new();
    work.resize_with(sizes.batch * sizes.heads, Vec::new);
    for (output, (_, tokens)) in outputs.into_iter().zip(&asking) {
        work.iter_mut().zip(split(output, *tokens, sizes)).for_each(|(work, part)| work.push(part));
    }
    work.into_par_iter().enumerate().for_each_init(AttentionScratch::default, |scratch, (index, outputs)| {
        let head = Head { item: index / sizes.heads, head: index % sizes.heads, sizes };
        let keys: usize = streams.iter().map(|stream| stream.tokens).sum();
        vectorized(Gather { head, streams, keys, scratch });
        for ((queries, tokens), output) in asking.iter().zip(outputs) {
            head.attend(output, queries, *tokens, keys, scratch);
        }
    });
}

/// An output as one matrix for each batch item and head.
fn split(out: &mut [f32], tokens: usize, sizes: AttentionSizes) -> Vec<MatMut<'_, f32>> {
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
    sizes: AttentionSizes,
}

impl Head {
    /// Where this head's features of the item's first token start, with `tokens` in each item.
    #[inline(always)]
    fn start(&self, tokens: usize) -> usize {
        (self.item * tokens * self.sizes.heads + self.head) * self.sizes.head
    }

    #[inline(always)]
    fn stride(&self) -> usize {
        self.sizes.heads * self.sizes.head
    }

    fn attend(
        &self,
        mut out: MatMut<'_, f32>,
        queries: &[f32],
        tokens: usize,
        keys: usize,
        scratch: &mut AttentionScratch,
    ) {
        let head = self.sizes.head;
        let (columns, features) = (keys.next_multiple_of(COLUMNS), head.next_multiple_of(COLUMNS));
        let AttentionScratch { keys: by_key, values, scores, attended, factors } = scratch;
        let scale = 1.0 / (head as f32).sqrt();
        for first in (0..tokens).step_by(QUERIES) {
            let rows = QUERIES.min(tokens - first);
            scores.resize(rows * columns, 0.0);
            attended.resize(rows * features, 0.0);
            factors.resize(rows, 0.0);
            let numbers = &queries[self.start(tokens) + first * self.stride()..];
            let asked = Strided { numbers, stride: self.stride() };
            multiply(scores, columns, Start::Zero, asked, head, Strided { numbers: by_key, stride: columns });
            vectorized(Softmax { scores, columns, keys, scale, factors });
            let shares = Strided { numbers: scores, stride: columns };
            multiply(
                attended,
                features,
                Start::Zero,
                shares,
                keys,
                Strided { numbers: values, stride: features },
            );
            let out = out.rb_mut().subrows_mut(first, rows);
            vectorized(Scatter { out, attended, features, factors });
        }
    }
}

/// Brings one head's keys and values of all streams together: keys as columns, values as rows, padded with zeros.
struct Gather<'a> {
    head: Head,
    streams: &'a [AttentionStream<'a>],
    keys: usize,
    scratch: &'a mut AttentionScratch,
}

impl Kernel for Gather<'_> {
    #[inline(always)]
    fn run(self) {
        let head = self.head.sizes.head;
        let (columns, features) = (self.keys.next_multiple_of(COLUMNS), head.next_multiple_of(COLUMNS));
        // The padding stays as it was first made: every head of a call has the same sizes.
        self.scratch.keys.resize(head * columns, 0.0);
        self.scratch.values.resize(self.keys * features, 0.0);
        let mut key = 0;
        for stream in self.streams {
            for token in 0..stream.tokens {
                let start = self.head.start(stream.tokens) + token * self.head.stride();
                let from = &stream.keys[start..start + head];
                for (to, x) in self.scratch.keys[key..].iter_mut().step_by(columns).zip(from) {
                    *to = *x;
                }
                let from = &stream.values[start..start + head];
                for (to, x) in self.scratch.values[key * features..][..head].iter_mut().zip(from) {
                    *to = *x;
                }
                key += 1;
            }
        }
    }
}

/// Turns rows of scores into e^(scale (score - largest)), and leaves one over each row's sum in `factors`.
struct Softmax<'a> {
    scores: &'a mut [f32],
    columns: usize,
    keys: usize,
    scale: f32,
    factors: &'a mut [f32],
}

impl Kernel for Softmax<'_> {
    #[inline(always)]
    fn run(self) {
        for (row, factor) in self.scores.chunks_exact_mut(self.columns).zip(self.factors) {
            let row = &mut row[..self.keys];
            let offset = -self.scale * max(row);
            *factor = 1.0 / exp_and_sum(row, self.scale, offset);
        }
    }
}

/// Multiplies each row by its factor and writes it to a head's columns of the output.
struct Scatter<'a> {
    out: MatMut<'a, f32>,
    attended: &'a [f32],
    features: usize,
    factors: &'a [f32],
}

impl Kernel for Scatter<'_> {
    #[inline(always)]
    fn run(mut self) {
        for (row, (attended, factor)) in
            self.attended.chunks_exact(self.features).zip(self.factors).enumerate()
        {
            let Some(row) = self.out.rb_mut().row_mut(row).try_as_row_major_mut() else { return };
            for (out, x) in row.as_slice_mut().iter_mut().zip(attended) {
                *out = x * factor;
            }
        }
    }
}
