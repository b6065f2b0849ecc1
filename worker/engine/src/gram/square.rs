//! A Gram as the square matrix that a solver works on.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::packed::row_start;
use super::{Gram, Sums};

/// Packed entries turned into the square before their memory goes back to the system: 64 MiB of integers.
const CHUNK: usize = 8 << 20;

/// A floating-point type that a Gram can be written in.
pub trait Real: Copy + Default + Send + Sync {
    /// The nearest value of this type.
    fn nearest(x: f64) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn nearest(x: f64) -> Self {
        x as Self
    }
}

impl Real for f64 {
    #[inline(always)]
    fn nearest(x: f64) -> Self {
        x
    }
}

impl Gram {
    /// S divided by its mass: the upper triangle, diagonal included, of an n x n row-major matrix whose rows start `stride` values
    /// apart. All else is zero.
    ///
    /// The packed sums are given back as the square fills, so that in f32 both together never take more than one of them and 64 MiB.
    ///
    /// # Panics
    /// When `stride` is smaller than the width.
    pub fn into_upper<T: Real>(self, stride: usize) -> Vec<T> {
        let n = self.width();
        assert!(stride >= n, "rows of {n} do not fit a stride of {stride}");
        let mut square = vec![T::default(); n * stride];
        let scale = self.value_of_unit() / if self.mass() > 0.0 { self.mass() } else { 1.0 };
        match self.into_sums() {
            Sums::Exact(sums) => fill(&mut square, sums, n, stride, |s| s as f64 * scale),
            Sums::F32(sums) => fill(&mut square, sums, n, stride, |s| f64::from(s) * scale),
        }
        square
    }
}

/// Fills the square from its last row to its first, cutting the packed sums behind it.
fn fill<T: Real, P: Copy + Sync>(
    square: &mut [T],
    mut packed: Vec<P>,
    n: usize,
    stride: usize,
    value: impl Fn(P) -> f64 + Copy + Sync,
) {
    let mut end = n;
    while end > 0 {
        let wanted = row_start(n, end).saturating_sub(CHUNK);
        let start = (0..end).rev().find(|&i| row_start(n, i) <= wanted).unwrap_or(0);
        square[start * stride..end * stride].par_chunks_mut(stride).enumerate().for_each(|(i, row)| {
            let i = start + i;
            let sums = &packed[row_start(n, i)..row_start(n, i + 1)];
            Arch::new().dispatch(Convert { sums, row: &mut row[i..n], value });
        });
        packed.truncate(row_start(n, start));
        packed.shrink_to_fit();
        end = start;
    }
}

struct Convert<'a, P, T, F> {
    sums: &'a [P],
    row: &'a mut [T],
    value: F,
}

impl<P: Copy, T: Real, F: Fn(P) -> f64> WithSimd for Convert<'_, P, T, F> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (x, &sum) in self.row.iter_mut().zip(self.sums) {
            *x = T::nearest((self.value)(sum));
        }
    }
}
