//! Rounding an f32 tile to integers and adding it: the step that makes a Gram exact.

use pulp::{Arch, Simd, WithSimd};

/// 1.5 * 2^52. Adding it to a y with |y| < 2^51 leaves y, rounded to the nearest integer, in the low bits of the sum; subtracting
/// its own bits as integers gives that integer, without a conversion that AVX2 does not have.
const ROUND: f64 = 6_755_399_441_055_744.0;

/// Adds round(`scale` * tile) to `sums`, row by row. `tile` has `width` values a row, of which row r of `sums` takes the last
/// `sums[r].len()`.
///
/// 12 bytes read and 8 written an entry, of which the tile's 4 come from cache.
pub(super) fn add_rounded(sums: &mut [&mut [i64]], tile: &[f32], width: usize, scale: f64) {
    Arch::new().dispatch(AddRounded { sums, tile, width, scale });
}

/// Adds `scale` * tile to `sums` in f32, laid out as for [`add_rounded`].
pub(super) fn add_scaled(sums: &mut [&mut [f32]], tile: &[f32], width: usize, scale: f32) {
    Arch::new().dispatch(AddScaled { sums, tile, width, scale });
}

struct AddRounded<'a, 'b> {
    sums: &'a mut [&'b mut [i64]],
    tile: &'a [f32],
    width: usize,
    scale: f64,
}

impl WithSimd for AddRounded<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (sums, tile) in self.sums.iter_mut().zip(self.tile.chunks_exact(self.width)) {
            let skip = self.width - sums.len();
            for (sum, &x) in sums.iter_mut().zip(&tile[skip..]) {
                let rounded = (f64::from(x) * self.scale + ROUND).to_bits().wrapping_sub(ROUND.to_bits());
                *sum = sum.wrapping_add(rounded as i64);
            }
        }
    }
}

struct AddScaled<'a, 'b> {
    sums: &'a mut [&'b mut [f32]],
    tile: &'a [f32],
    width: usize,
    scale: f32,
}

impl WithSimd for AddScaled<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for (sums, tile) in self.sums.iter_mut().zip(self.tile.chunks_exact(self.width)) {
            let skip = self.width - sums.len();
            for (sum, &x) in sums.iter_mut().zip(&tile[skip..]) {
                *sum += self.scale * x;
            }
        }
    }
}
