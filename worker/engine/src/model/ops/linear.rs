//! A linear with what follows it, tile by tile: the product of a tile is finished while it is in cache.

use faer::linalg::matmul::matmul;
use faer::prelude::ReborrowMut;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::EPSILON;
use super::simd::{Kernel, gelu, sum, vectorized};

/// Rows and columns of a tile. Set by the product's shape alone, so that results do not depend on the number of threads.
fn tile(rows: usize, n: usize) -> (usize, usize) {
    if rows <= 1024 && n <= 1024 { (128, 128) } else { (256, 256) }
}

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

/// Writes `finish(x W^T + b)` to `out` (`rows x out`), with x `rows x n`: 2 rows n out flops, and one pass over `out`.
pub(super) fn linear(out: &mut [f32], x: &[f32], layer: LinearSlices<'_>, finish: Finish<'_>) {
    let width = layer.bias.len();
    let Some(n) = layer.weight.len().checked_div(width).filter(|n| *n > 0) else { return };
    let (tile_rows, mut tile_columns) = tile(x.len() / n, n);
    if let Finish::HeadNorm(norm) = finish {
        // A tile holds whole heads.
        tile_columns = tile_columns.next_multiple_of(norm.len().max(1));
    }
    let weight = MatRef::from_row_major_slice(layer.weight, width, n);
    let stripes = out.par_chunks_mut(tile_rows * width).zip(x.par_chunks(tile_rows * n)).enumerate();
    stripes.for_each(|(stripe, (out, x))| {
        let rows = x.len() / n;
        let x = MatRef::from_row_major_slice(x, rows, n);
        let tiles = MatMut::from_row_major_slice_mut(out, rows, width).par_col_chunks_mut(tile_columns);
        tiles.enumerate().for_each_init(Vec::new, |scratch, (index, mut out)| {
            let column = index * tile_columns;
            let columns = out.ncols();
            let weight = weight.subrows(column, columns).transpose();
            let place =
                TilePlace { row: stripe * tile_rows, column, bias: &layer.bias[column..column + columns] };
            if let Finish::AddGated(gates) = finish {
                scratch.resize(rows * columns, 0.0);
                let product = MatMut::from_row_major_slice_mut(scratch, rows, columns);
                matmul(product, Accum::Replace, x, weight, 1.0, Par::Seq);
                vectorized(AddGated { residual: out, product: scratch, gates, place });
            } else {
                matmul(out.rb_mut(), Accum::Replace, x, weight, 1.0, Par::Seq);
                vectorized(FinishRows { tile: out, finish, place });
            }
        });
    });
}

/// Where in the product a tile lies.
struct TilePlace<'a> {
    row: usize,
    column: usize,
    bias: &'a [f32],
}

/// Finishes a tile that holds x W^T.
struct FinishRows<'a> {
    tile: MatMut<'a, f32>,
    finish: Finish<'a>,
    place: TilePlace<'a>,
}

impl Kernel for FinishRows<'_> {
    #[inline(always)]
    fn run(mut self) {
        let bias = self.place.bias;
        for row in 0..self.tile.nrows() {
            let Some(row) = self.tile.rb_mut().row_mut(row).try_as_row_major_mut() else { return };
            let row = row.as_slice_mut();
            if let Finish::Gelu = self.finish {
                for (y, b) in row.iter_mut().zip(bias) {
                    *y = gelu(*y + b);
                }
                continue;
            }
            for (y, b) in row.iter_mut().zip(bias) {
                *y += b;
            }
            if let Finish::HeadNorm(norm) = self.finish {
                for head in row.chunks_exact_mut(norm.len().max(1)) {
                    head_norm(head, norm);
                }
            }
        }
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

/// Adds gate * (product + bias) to a tile of the residual.
struct AddGated<'a> {
    residual: MatMut<'a, f32>,
    product: &'a [f32],
    gates: Gates<'a>,
    place: TilePlace<'a>,
}

impl Kernel for AddGated<'_> {
    #[inline(always)]
    fn run(mut self) {
        let TilePlace { row: first, column, bias } = self.place;
        for (row, product) in self.product.chunks_exact(bias.len()).enumerate() {
            let start = (first + row) / self.gates.tokens * self.gates.stride + self.gates.start + column;
            let gate = &self.gates.values[start..start + bias.len()];
            let Some(row) = self.residual.rb_mut().row_mut(row).try_as_row_major_mut() else { return };
            for ((x, y), (b, g)) in row.as_slice_mut().iter_mut().zip(product).zip(bias.iter().zip(gate)) {
                *x = g.mul_add(y + b, *x);
            }
        }
    }
}
