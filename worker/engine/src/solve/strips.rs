//! Strips of rows of a weight, a block of columns at a time, transposed: what pruning works on.
//!
//! In a strip, the same column of [`LANES`] rows is contiguous, so a vector instruction does the same to many rows. Rows never touch
//! each other's values, so a strip is one task's alone.

use bytemuck::{Pod, Zeroable};

/// Rows of a strip.
pub(super) const LANES: usize = 96;

/// Rows and columns that are transposed in registers.
const TILE: usize = 4;

/// One column of a strip. It starts on a cache line, so that no vector load straddles two.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct StripColumn([f32; LANES]);

/// The values of columns, one column after the other.
pub(super) fn values(columns: &[StripColumn]) -> &[f32] {
    bytemuck::cast_slice(columns)
}

/// The same, to be changed.
pub(super) fn values_mut(columns: &mut [StripColumn]) -> &mut [f32] {
    bytemuck::cast_slice_mut(columns)
}

/// Copies columns `start..` of at most [`LANES`] rows of n values to `columns`. Lanes without a row become 0.
pub(super) fn load(rows: &[f32], n: usize, start: usize, columns: &mut [StripColumn]) {
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

/// Puts `columns` in the place where [`load`] took them from, and by how much each value changes into `changes`; lanes without a row
/// do not change.
pub(super) fn exchange(
    columns: &[StripColumn],
    rows: &mut [f32],
    n: usize,
    start: usize,
    changes: &mut [StripColumn],
) {
    let tiles = columns.as_chunks::<TILE>().0;
    let height = rows.len() / n;
    if height < LANES {
        changes.iter_mut().for_each(|change| change.0[height..].fill(0.0));
    }
    for (lane, rows) in (0..LANES).step_by(TILE).zip(rows.chunks_mut(TILE * n)) {
        let mut each = rows.chunks_exact_mut(n).map(|row| &mut row[start..]);
        let mut next = || each.next();
        let whole = match (next(), next(), next(), next()) {
            (Some(a), Some(b), Some(c), Some(d)) => {
                let [a, b, c, d] = [a, b, c, d].map(|row| row.as_chunks_mut().0.iter_mut());
                let tiles = tiles.iter().zip(changes.as_chunks_mut::<TILE>().0);
                for ((tile, changes), (((a, b), c), d)) in tiles.zip(a.zip(b).zip(c).zip(d)) {
                    let after = tile.each_ref().map(|column| part(column, lane));
                    let before = transposed([*a, *b, *c, *d]);
                    for ((change, after), before) in changes.iter_mut().zip(after).zip(before) {
                        let by = [0, 1, 2, 3].map(|l| after[l] - before[l]);
                        change.0[lane..lane + TILE].copy_from_slice(&by);
                    }
                    [*a, *b, *c, *d] = transposed(after);
                }
                columns.len() / TILE
            }
            _ => 0,
        };
        let left = columns.iter().zip(&mut *changes).skip(whole * TILE);
        for (j, (column, change)) in (start + whole * TILE..).zip(left) {
            for (lane, row) in (lane..).zip(rows.chunks_exact_mut(n)) {
                change.0[lane] = column.0[lane] - row[j];
                row[j] = column.0[lane];
            }
        }
    }
}

/// As many lanes as a tile has, from `lane` on.
#[inline(always)]
fn part(column: &StripColumn, lane: usize) -> [f32; TILE] {
    let at = &column.0[lane..lane + TILE];
    [at[0], at[1], at[2], at[3]]
}

#[inline(always)]
fn transposed([a, b, c, d]: [[f32; TILE]; TILE]) -> [[f32; TILE]; TILE] {
    [[a[0], b[0], c[0], d[0]], [a[1], b[1], c[1], d[1]], [a[2], b[2], c[2], d[2]], [a[3], b[3], c[3], d[3]]]
}
