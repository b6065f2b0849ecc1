//! A weight cut into strips of rows, each transposed: what pruning works on.
//!
//! In a strip, the same column of [`LANES`] rows is contiguous, so a vector instruction does the same to many rows. Rows never touch
//! each other's values, so a strip is one task's alone.

use rayon::prelude::*;

/// Rows of a strip.
pub(super) const LANES: usize = 64;

/// f32 values of a cache line.
const LINE: usize = 16;

/// Columns that are transposed while they stay in the innermost cache.
const BAND: usize = 4 * LINE;

/// Values that start on a cache line, so that no vector load straddles two.
#[derive(Clone, Debug, Default)]
pub(super) struct Aligned {
    values: Vec<f32>,
    start: usize,
    length: usize,
}

impl Aligned {
    pub(super) fn zeros(length: usize) -> Self {
        let values = vec![0.0; length + LINE];
        let start = values.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        Self { values, start, length }
    }

    pub(super) fn values(&self) -> &[f32] {
        &self.values[self.start..self.start + self.length]
    }

    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.start..self.start + self.length]
    }
}

/// Strips of a rows x n weight; the last one is filled up with rows of zeros.
pub(super) fn strips(weight: &[f32], n: usize) -> Vec<Aligned> {
    let cut = |rows: &[f32]| {
        let mut strip = Aligned::zeros(n * LANES);
        transpose(rows, n, strip.values_mut());
        strip
    };
    weight.par_chunks(LANES * n).map(cut).collect()
}

/// Writes strips back to the weight they were cut from.
pub(super) fn unite(strips: &[Aligned], n: usize, weight: &mut [f32]) {
    weight.par_chunks_mut(LANES * n).zip(strips).for_each(|(rows, strip)| {
        for (band, columns) in strip.values().chunks(BAND * LANES).enumerate() {
            let width = columns.len() / LANES;
            for (r, row) in rows.chunks_exact_mut(n).enumerate() {
                let row = &mut row[band * BAND..band * BAND + width];
                row.iter_mut().zip(columns.chunks_exact(LANES)).for_each(|(w, column)| *w = column[r]);
            }
        }
    });
}

fn transpose(rows: &[f32], n: usize, strip: &mut [f32]) {
    for (band, columns) in strip.chunks_mut(BAND * LANES).enumerate() {
        let width = columns.len() / LANES;
        for (r, row) in rows.chunks_exact(n).enumerate() {
            let row = &row[band * BAND..band * BAND + width];
            row.iter().zip(columns.chunks_exact_mut(LANES)).for_each(|(w, column)| column[r] = *w);
        }
    }
}
