//! Strips of rows of a weight, a block of columns at a time, transposed: what pruning works on.
//!
//! In a strip, the same column of [`LANES`] rows is contiguous, so a vector instruction does the same to many rows. Rows never touch
//! each other's values, so a strip is one task's alone.

use bytemuck::{Pod, Zeroable};

/// Rows of a strip.
pub(super) const LANES: usize = 64;

/// Rows and columns that are transposed in registers.
const TILE: usize = 4;

/// One column of a strip. It starts on a cache line, so that no vector load straddles two.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Column([f32; LANES]);

/// The values of columns, one column after the other.
pub(super) fn values(columns: &[Column]) -> &[f32] {
    bytemuck::cast_slice(columns)
}

/// The same, to be changed.
pub(super) fn values_mut(columns: &mut [Column]) -> &mut [f32] {
    bytemuck::cast_slice_mut(columns)
}

/// Copies columns `start..` of at most [`LANES`] rows of n values to `columns`. Lanes without a row become 0.
pub(super) fn load(rows: &[f32], n: usize, start: usize, columns: &mut [Column]) {
    let height = rows.len() / n;
    if height < LANES {
        columns.iter_mut().for_each(|column| column.0[height..].fill(0.0));
    }
    for (lane, rows) in (0..LANES).step_by(TILE).zip(rows.chunks(TILE * n)) {
        let each = |r: usize| rows.get(r * n + start..).unwrap_or_default().as_chunks().0;
        let tiles = each(0).iter().zip(each(1)).zip(each(2)).zip(each(3));
        let (to, rest) = columns.as_chunks_mut::<TILE>();
        // Rows fewer than a tile's are copied one by one below.
        let whole = if rows.len() == TILE * n { to.len() } else { 0 };
        for (to, (((a, b), c), d)) in to[..whole].iter_mut().zip(tiles) {
            let [a, b, c, d] = transposed([*a, *b, *c, *d]);
            for (column, values) in to.iter_mut().zip([a, b, c, d]) {
                column.0[lane..lane + TILE].copy_from_slice(&values);
            }
        }
        let left = to[whole..].as_flattened_mut().iter_mut().chain(rest);
        for (j, column) in (start + whole * TILE..).zip(left) {
            rows.chunks_exact(n).zip(&mut column.0[lane..]).for_each(|(row, w)| *w = row[j]);
        }
    }
}

/// Copies `columns` back to where [`load`] took them from.
pub(super) fn store(columns: &[Column], rows: &mut [f32], n: usize, start: usize) {
    let (tiles, rest) = columns.as_chunks::<TILE>();
    for (lane, rows) in (0..LANES).step_by(TILE).zip(rows.chunks_mut(TILE * n)) {
        let mut each = rows.chunks_exact_mut(n).map(|row| &mut row[start..]);
        let mut next = || each.next();
        let whole = match (next(), next(), next(), next()) {
            (Some(a), Some(b), Some(c), Some(d)) => {
                let [a, b, c, d] = [a, b, c, d].map(|row| row.as_chunks_mut().0.iter_mut());
                for (tile, (((a, b), c), d)) in tiles.iter().zip(a.zip(b).zip(c).zip(d)) {
                    let [i, j, k, l] = tile.each_ref().map(|column| part(column, lane));
                    [*a, *b, *c, *d] = transposed([i, j, k, l]);
                }
                tiles.len()
            }
            _ => 0,
        };
        let left = tiles[whole..].as_flattened().iter().chain(rest);
        for (j, column) in (start + whole * TILE..).zip(left) {
            rows.chunks_exact_mut(n).zip(&column.0[lane..]).for_each(|(row, w)| row[j] = *w);
        }
    }
}

/// As many lanes as a tile has, from `lane` on.
#[inline(always)]
fn part(column: &Column, lane: usize) -> [f32; TILE] {
    let at = &column.0[lane..lane + TILE];
    [at[0], at[1], at[2], at[3]]
}

#[inline(always)]
fn transposed([a, b, c, d]: [[f32; TILE]; TILE]) -> [[f32; TILE]; TILE] {
    [[a[0], b[0], c[0], d[0]], [a[1], b[1], c[1], d[1]], [a[2], b[2], c[2], d[2]], [a[3], b[3], c[3], d[3]]]
}
