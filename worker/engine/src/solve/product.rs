//! Products of a linear's rows with a square of its site.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::factor::stride;

/// Rows and columns of a tile of a product. Set by the shape alone, so that results do not depend on the number of threads. Columns are
/// whole registers of the GEMM's kernel (96 f32), and so few that a tile's share of the square is read again from a near cache; rows are
/// as many as leave some tiles for each thread.
const fn tile(n: usize) -> (usize, usize) {
    match n {
        0..=1024 => (192, 192),
        1025..=3072 => (384, 384),
        _ => (768, 288),
    }
}

/// Writes `factor` * `rows` (rows x n) * `square` (n x n, its rows [`stride`] apart) to `out`, or adds it to what is there; tile by tile.
pub(super) fn multiply(out: &mut [f32], accum: Accum, rows: &[f32], square: &[f32], n: usize, factor: f32) {
    let (tile_rows, tile_columns) = tile(n);
    let square = MatRef::from_row_major_slice_with_stride(square, n, n, stride(n));
    out.par_chunks_mut(tile_rows * n).zip(rows.par_chunks(tile_rows * n)).for_each(|(out, rows)| {
        let height = rows.len() / n;
        let rows = MatRef::from_row_major_slice(rows, height, n);
        let tiles = MatMut::from_row_major_slice_mut(out, height, n).par_col_chunks_mut(tile_columns);
        tiles.enumerate().for_each(|(tile, out)| {
            let columns = square.subcols(tile * tile_columns, out.ncols());
            matmul(out, accum, rows, columns, factor, Par::Seq);
        });
    });
}
