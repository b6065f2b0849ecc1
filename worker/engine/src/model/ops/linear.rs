//! A linear with what follows it, piece by piece: the product of a piece is finished while it is in cache.

use std::cell::RefCell;

use faer::MatMut;
use faer::prelude::ReborrowMut;
use rayon::prelude::*;

use super::EPSILON;
use super::packing::{PANEL, WeightBlock, pack};
use super::product::{self, Start, Strided, multiply};
use super::simd::{Kernel, gelu, sum, vectorized};

/// Columns of a piece, where no head asks for more.
const COLUMNS: usize = 128;
/// Rows of a piece at most. A piece packs its weight once for all of them.
const ROWS: usize = 1024;
/// Pieces of so many rows are divided no more: packing for each part would cost more than it gains.
const FEW_ROWS: usize = 128;
/// Inputs that are multiplied in one step: the weight's panels and the rows of a block stay in a core's cache meanwhile.
const DEPTH: usize = 384;
const BLOCK_ROWS: usize = 126;
/// Bytes of the buffers that each thread keeps, for a piece's product and its packed weight, where no head is wider than [`COLUMNS`].
pub const THREAD_BYTES: u64 = (4 * COLUMNS * (ROWS + DEPTH)) as u64;
/// Bytes of a line of the caches, at which vectors are read fastest.
const LINE: usize = 64;

/// A linear's weight (`out x n`) and bias (`out`).
#[derive(Clone, Copy)]
pub(super) struct LinearSlices<'a> {
    pub(super) weight: &'a [f32],
    pub(super) bias: &'a [f32],
}

/// What becomes of x W^T + b.
#[derive(Clone, Copy)]
pub(super) enum Finish<'a> {
    /// It is written as it is.
    Plain,
    /// GELU.
    Gelu,
    /// Every head is divided by its root mean square and multiplied by these numbers.
    HeadNorm(&'a [f32]),
    /// It is multiplied by gates and added to what is there.
    AddGated(Gates<'a>),
}

/// A gate for every column, of each batch item.
#[derive(Clone, Copy)]
pub(super) struct Gates<'a> {
    /// One matrix row for each item, of which the gates are `out` numbers from `start`.
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
    pub(super) start: usize,
    /// Rows of an item.
    pub(super) tokens: usize,
}

/// Writes `finish(x W^T + b)` to `out` (`rows x out`), with x `rows x n`: 2 rows n out flops, and one pass over `out`. Every number is
/// summed in the order of the inputs, however the work is divided. Each thread keeps [`THREAD_BYTES`].
pub(super) fn linear(out: &mut [f32], x: &[f32], layer: LinearSlices<'_>, finish: Finish<'_>) {
    thread_local! {
        static SCRATCH: RefCell<LinearScratch> = RefCell::default();
    }
    let width = layer.bias.len();
    let Some(n) = layer.weight.len().checked_div(width).filter(|n| *n > 0) else { return };
    let columns = match finish {
        // A piece holds whole heads.
        Finish::HeadNorm(norm) => COLUMNS.next_multiple_of(norm.len().max(1)),
        _ => COLUMNS,
    };
    let rows = piece_rows(x.len() / n, width.div_ceil(columns));
    let stripes = out.par_chunks_mut(rows * width).zip(x.par_chunks(rows * n)).enumerate();
    stripes.for_each(|(stripe, (out, x))| {
        let pieces =
            MatMut::from_row_major_slice_mut(out, x.len() / n, width).par_col_chunks_mut(columns).enumerate();
        pieces.for_each(|(index, out)| {
            let outputs = index * columns..index * columns + out.ncols();
            let weight = &layer.weight[outputs.start * n..outputs.end * n];
            let place = PiecePlace { row: stripe * rows, column: outputs.start, bias: &layer.bias[outputs] };
            SCRATCH.with_borrow_mut(|scratch| {
                let product = scratch.product(x, weight, n);
                vectorized(FinishRows { out, product, finish, place });
            });
        });
    });
}

/// Rows of a piece, so that there are several pieces for each thread.
fn piece_rows(rows: usize, pieces_of_columns: usize) -> usize {
    let mut pieces = rows.div_ceil(ROWS).max(1);
    while pieces * pieces_of_columns < 4 * rayon::current_num_threads() && rows > pieces * FEW_ROWS {
        pieces *= 2;
    }
    rows.div_ceil(pieces).max(1)
}

/// Buffers of one thread.
#[derive(Default)]
struct LinearScratch {
    weight: Vec<f32>,
    product: Vec<f32>,
}

impl LinearScratch {
    /// x (`rows x n`) by the transposed weight (`columns x n`).
    fn product(&mut self, x: &[f32], weight: &[f32], n: usize) -> MatrixPanels<'_> {
        let (rows, columns) = (x.len() / n, weight.len() / n);
        let columns = columns.next_multiple_of(product::COLUMNS);
        let product = aligned(&mut self.product, rows * columns);
        for first in (0..n).step_by(DEPTH) {
            let depth = DEPTH.min(n - first);
            let packed = aligned(&mut self.weight, columns.next_multiple_of(PANEL) * depth);
            pack(packed, WeightBlock { weight, n, first, depth });
            let start = if first == 0 { Start::Zero } else { Start::Out };
            for row in (0..rows).step_by(BLOCK_ROWS) {
                let count = BLOCK_ROWS.min(rows - row);
                let x = Strided { numbers: &x[row * n + first..], stride: n };
                for (product, weight) in product.chunks_mut(rows * PANEL).zip(packed.chunks(depth * PANEL)) {
                    let columns = product.len() / rows;
                    let product = &mut product[row * columns..][..count * columns];
                    multiply(product, columns, start, x, depth, Strided { numbers: weight, stride: PANEL });
                }
            }
        }
        MatrixPanels { numbers: product, rows, columns }
    }
}

/// The first `len` numbers of a buffer that lie at the start of a line; they are whatever they were.
fn aligned(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    let spare = LINE / size_of::<f32>();
    if buffer.len() < len + spare {
        buffer.resize(len + spare, 0.0);
    }
    // For a pointer that cannot be aligned, `align_offset` returns a larger number.
    let start = buffer.as_ptr().align_offset(LINE).min(spare);
    &mut buffer[start..start + len]
}

/// A matrix as panels one after another, each `rows x PANEL`, the last one of what is left of the columns.
#[derive(Clone, Copy)]
struct MatrixPanels<'a> {
    numbers: &'a [f32],
    rows: usize,
    columns: usize,
}

impl<'a> MatrixPanels<'a> {
    /// A row's numbers in one panel.
    #[inline(always)]
    fn line(self, row: usize, panel: usize) -> &'a [f32] {
        let columns = PANEL.min(self.columns - panel * PANEL);
        &self.numbers[self.rows * panel * PANEL + row * columns..][..columns]
    }
}

/// Where in the product a piece lies.
struct PiecePlace<'a> {
    row: usize,
    column: usize,
    bias: &'a [f32],
}

/// Writes what becomes of a piece of x W^T.
struct FinishRows<'a> {
    out: MatMut<'a, f32>,
    product: MatrixPanels<'a>,
    finish: Finish<'a>,
    place: PiecePlace<'a>,
}

impl Kernel for FinishRows<'_> {
    #[inline(always)]
    fn run(mut self) {
        for row in 0..self.product.rows {
            let Some(out) = self.out.rb_mut().row_mut(row).try_as_row_major_mut() else { return };
            let out = out.as_slice_mut();
            let parts = out.chunks_mut(PANEL).zip(self.place.bias.chunks(PANEL)).enumerate();
            for (panel, (out, bias)) in parts {
                let product = self.product.line(row, panel);
                let sums = product.iter().zip(bias).map(|(y, b)| y + b);
                match self.finish {
                    Finish::Plain | Finish::HeadNorm(_) => set(out, sums),
                    Finish::Gelu => set(out, sums.map(gelu)),
                    Finish::AddGated(gates) => {
                        let gates = gates.of(self.place.row + row, self.place.column + panel * PANEL);
                        for ((x, y), g) in out.iter_mut().zip(sums).zip(gates) {
                            *x = g.mul_add(y, *x);
                        }
                    }
                }
            }
            if let Finish::HeadNorm(norm) = self.finish {
                for head in out.chunks_exact_mut(norm.len().max(1)) {
                    head_norm(head, norm);
                }
            }
        }
    }
}

impl<'a> Gates<'a> {
    /// Those of a row, from a column on.
    #[inline(always)]
    fn of(self, row: usize, column: usize) -> &'a [f32] {
        &self.values[row / self.tokens * self.stride + self.start + column..]
    }
}

#[inline(always)]
fn set(out: &mut [f32], numbers: impl Iterator<Item = f32>) {
    for (out, number) in out.iter_mut().zip(numbers) {
        *out = number;
    }
}

#[inline(always)]
fn head_norm(head: &mut [f32], norm: &[f32]) {
    let mean_square = sum(head, |x| x * x) / head.len() as f32;
    let factor = 1.0 / (mean_square + EPSILON as f32).sqrt();
    for (x, weight) in head.iter_mut().zip(norm) {
        *x = *x * factor * weight;
    }
}
