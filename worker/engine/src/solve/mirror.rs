//! Setting up the matrix that is factorised, in the unused half of the square that holds S.
//!
//! The lower triangle takes J H J, with J the reversal of rows and columns: entry (n-1-i, n-1-j) of S lands on (i, j). It is the
//! reversal of the upper triangle in memory, so S itself stays where it is but for its diagonal, which both would use.

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::float::Float;

/// Values that are reversed together.
const VECTOR: usize = 16;

/// Writes the reversal of the strict upper triangle of the n x n `square` to its strict lower triangle. True when all of it is
/// finite.
pub(super) fn mirror<T: Float>(square: &mut [T], n: usize, stride: usize) -> bool {
    let (top, rest) = square.split_at_mut(n / 2 * stride);
    let (middle, bottom) = rest.split_at_mut((n % 2) * stride);
    // Row r and row n-1-r of the square swap their halves, so a pair is one task's alone.
    let halves = (top.par_chunks_mut(stride), bottom.par_chunks_mut(stride).rev());
    let finite = halves.into_par_iter().enumerate().map(|(r, (above, below))| {
        let mirrored = n - 1 - r;
        let first = reverse(&above[r + 1..n], &mut below[..mirrored]);
        let second = reverse(&below[mirrored + 1..n], &mut above[..r]);
        first && second
    });
    let finite = finite.reduce(|| true, |a, b| a && b);
    // An odd n leaves the row in the middle, whose right half goes to its left.
    let (left, right) = middle.split_at_mut(middle.len().min(n / 2));
    let right = right.get(1..n - n / 2).unwrap_or_default();
    finite && reverse(right, left)
}

fn reverse<T: Float>(from: &[T], to: &mut [T]) -> bool {
    Arch::new().dispatch(Reverse { from, to })
}

struct Reverse<'a, T> {
    from: &'a [T],
    to: &'a mut [T],
}

impl<T: Float> WithSimd for Reverse<'_, T> {
    type Output = bool;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> bool {
        let Self { from, to } = self;
        let (from, first) = (from.rchunks_exact(VECTOR), &from[..from.len() % VECTOR]);
        let mut to = to.chunks_exact_mut(VECTOR);
        let mut finite = true;
        let mut put = |to: &mut T, from: T| {
            *to = from;
            finite &= from.is_finite_number();
        };
        // A known number of values at a time: they are reversed within registers.
        for (to, from) in (&mut to).zip(from) {
            (0..VECTOR).for_each(|i| put(&mut to[i], from[VECTOR - 1 - i]));
        }
        to.into_remainder().iter_mut().zip(first.iter().rev()).for_each(|(to, from)| put(to, *from));
        finite
    }
}

/// Clears row and column `j` of the mirrored matrix but for its diagonal. A dead column's products with others are at most
/// rounding errors, yet without its own diagonal they could make H indefinite.
pub(super) fn isolate<T: Float>(square: &mut [T], n: usize, stride: usize, j: usize) {
    let i = n - 1 - j;
    square[i * stride..i * stride + i].fill(T::ZERO);
    square.par_chunks_mut(stride).skip(i + 1).for_each(|row| row[i] = T::ZERO);
}
