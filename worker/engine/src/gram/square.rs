//! A Gram as the square matrix that a solver works on.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::packed::row_start;
use super::{Gram, GramSums};

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
    /// apart. All else is zero. The packed sums stay: another group may need them.
    ///
    /// # Panics
    /// When `stride` is smaller than the width.
    pub fn to_upper<T: Real>(&self, stride: usize) -> Vec<T> {
        let n = self.width();
        assert!(stride >= n, "rows of {n} do not fit a stride of {stride}");
        let mut square = vec![T::default(); n * stride];
        let scale = self.value_of_entry();
        match self.sums() {
            GramSums::Exact(sums) => convert(&mut square, sums, n, stride, |s| s as f64 * scale),
            GramSums::F32(sums) => convert(&mut square, sums, n, stride, |s| f64::from(s) * scale),
        }
        square
    }

    /// What one unit of the sums is worth in the mean.
    pub(crate) fn value_of_entry(&self) -> f64 {
        self.value_of_unit() / if self.mass() > 0.0 { self.mass() } else { 1.0 }
    }
}

/// Writes the packed triangle into the square.
fn convert<T: Real, P: Copy + Sync>(
    square: &mut [T],
    packed: &[P],
    n: usize,
    stride: usize,
    value: impl Fn(P) -> f64 + Copy + Sync,
) {
    square.par_chunks_mut(stride).enumerate().for_each(|(i, row)| {
        let sums = &packed[row_start(n, i)..row_start(n, i + 1)];
        Arch::new().dispatch(Convert { sums, row: &mut row[i..n], value });
    });
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
