//! Where the upper triangle of an n x n matrix lies in a flat buffer: row after row, row i holding columns i..n.

/// Entries of the upper triangle of an n x n matrix.
pub(super) const fn entries(n: usize) -> usize {
    n * (n + 1) / 2
}

/// Where row `i` starts; its first entry is the diagonal's.
pub(super) const fn row_start(n: usize, i: usize) -> usize {
    i * n - i * i.saturating_sub(1) / 2
}

/// The part of the upper triangle that one task owns: rows `row..`, columns `column..` of a square tile. A tile on the diagonal
/// holds only its own upper triangle, so its rows grow shorter.
pub(super) struct Tile<'a, T> {
    pub(super) row: usize,
    pub(super) column: usize,
    pub(super) rows: Vec<&'a mut [T]>,
}

/// Cuts the packed triangle into tiles of `side` rows and columns (fewer at the ends), without overlap.
pub(super) fn tiles<T>(packed: &mut [T], n: usize, side: usize) -> Vec<Tile<'_, T>> {
    let mut tiles = Vec::new();
    let mut rest = packed;
    for row in (0..n).step_by(side) {
        let first = tiles.len();
        for column in (row..n).step_by(side) {
            tiles.push(Tile { row, column, rows: Vec::with_capacity(side.min(n - row)) });
        }
        for i in row..n.min(row + side) {
            for tile in &mut tiles[first..] {
                let end = n.min(tile.column + side);
                let (part, tail) = rest.split_at_mut(end - tile.column.max(i));
                tile.rows.push(part);
                rest = tail;
            }
        }
    }
    tiles
}
