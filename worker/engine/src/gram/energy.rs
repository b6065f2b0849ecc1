//! Weighted column energies: the diagonal of alpha X^T X alone.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Columns of one task; a sum over rows is never split, so results do not depend on the number of threads.
const COLUMNS: usize = 256;

/// Adds alpha times the sum of squares of each column of `rows` (tokens x `width`, row-major) to `energy` (`width`).
///
/// Squares and sums are f64. 2 * tokens * width operations on one pass over `rows`. What does not fill a row is ignored.
///
/// # Panics
/// When `energy` is not `width` long.
pub fn column_energy(rows: &[f32], width: usize, alpha: f64, energy: &mut [f64]) {
    assert_eq!(energy.len(), width, "one energy a column");
    energy.par_chunks_mut(COLUMNS).enumerate().for_each(|(part, energy)| {
        let mut sums = [0.0; COLUMNS];
        let sums = &mut sums[..energy.len()];
        Arch::new().dispatch(Squares { rows, width, first: part * COLUMNS, sums });
        energy.iter_mut().zip(sums).for_each(|(e, s)| *e += alpha * *s);
    });
}

/// Adds the squares of columns `first..first + sums.len()` to `sums`.
struct Squares<'a> {
    rows: &'a [f32],
    width: usize,
    first: usize,
    sums: &'a mut [f64],
}

impl WithSimd for Squares<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for row in self.rows.chunks_exact(self.width) {
            let row = &row[self.first..self.first + self.sums.len()];
            for (sum, &x) in self.sums.iter_mut().zip(row) {
                let x = f64::from(x);
                *sum += x * x;
            }
        }
    }
}
