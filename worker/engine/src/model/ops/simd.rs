//! Loops over slices that the compiler vectorises for the processor it finds at run time.
//!
//! The functions here are always inlined: they become AVX-512 or AVX2 code inside a [`Kernel`] given to [`vectorized`]. Sums run
//! in a fixed number of lanes, so they do not depend on the processor's width of vectors.

use pulp::{Arch, Simd, WithSimd};

/// Lanes of a sum; a multiple of every vector width.
pub(super) const LANES: usize = 16;

/// A loop to be vectorised. Its `run` must be `#[inline(always)]`, and so must every function with a loop or [`exp`] in it: what
/// is not inlined keeps the instruction set of the oldest processor.
pub(super) trait Kernel {
    fn run(self);
}

/// Runs a kernel compiled for the best instruction set of this processor.
#[inline]
pub(super) fn vectorized(kernel: impl Kernel) {
    struct Vectorized<K>(K);
    impl<K: Kernel> WithSimd for Vectorized<K> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) {
            self.0.run();
        }
    }
    Arch::new().dispatch(Vectorized(kernel));
}

/// e^x to within 2e-7 relative, for -87 <= x <= 88; beyond, the value at the nearer end. NaN stays NaN.
///
/// 2^n e^r with n the nearest whole number to x / ln 2, and e^r by its Taylor series up to r^7 (|r| <= ln 2 / 2: the rest is
/// below 6e-9).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding it leaves the nearest whole number in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts, the first with few enough bits for n times it to be exact.
    const LN_2: [f32; 2] = [355.0 / 512.0, (std::f64::consts::LN_2 - 355.0 / 512.0) as f32];
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN_2[1], n.mul_add(-LN_2[0], x));
    let mut series = 1.0 / 5040.0;
    for term in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        series = r.mul_add(series, term);
    }
    series * f32::from_bits((rounded.to_bits() << 23).wrapping_add(1f32.to_bits()))
}

/// GELU by its tanh approximation, x / 2 (1 + tanh u) = x / (1 + e^-2u) with u = sqrt(2 / pi) (x + 0.044715 x^3).
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    const SLOPE: f32 = -2.0 * 0.797_884_6;
    let exponent = SLOPE * x * (0.044_715 * x).mul_add(x, 1.0);
    // Past 80 the quotient is nothing, and `reciprocal` must not be given more.
    let exponent = if exponent > 80.0 { 80.0 } else { exponent };
    x * reciprocal(1.0 + exp(exponent))
}

/// 1 / x to within 2e-7 relative, for 1 <= x <= e^80: three Newton steps from a guess made of x's bits, which cost a third of a
/// division's time. NaN stays NaN.
#[inline(always)]
fn reciprocal(x: f32) -> f32 {
    /// The exponent's reflection, less a fraction that makes the guess's largest error (12 %) smallest.
    const REFLECTION: u32 = 0x7ef3_11c3;
    let mut guess = f32::from_bits(REFLECTION.wrapping_sub(x.to_bits()));
    for _ in 0..3 {
        guess = (-x).mul_add(guess, 1.0).mul_add(guess, guess);
    }
    guess
}

/// Replaces every number by e^(scale x + offset); gives their sum.
#[inline(always)]
pub(super) fn exp_and_sum(values: &mut [f32], scale: f32, offset: f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = values.as_chunks_mut::<LANES>();
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *x = exp(scale.mul_add(*x, offset));
            *lane += *x;
        }
    }
    for x in rest.iter_mut() {
        *x = exp(scale.mul_add(*x, offset));
    }
    fold(lanes, |a, b| a + b) + sum(rest, |x| x)
}

/// The sum of `of(x)` over a slice.
#[inline(always)]
pub(super) fn sum(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += of(*x);
        }
    }
    let rest = rest.iter().fold(0.0, |all, x| all + of(*x));
    fold(lanes, |a, b| a + b) + rest
}

/// The largest number of a slice; NaNs do not count.
#[inline(always)]
pub(super) fn max(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = values.as_chunks::<LANES>();
    for chunk in whole {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, *x);
        }
    }
    rest.iter().fold(fold(lanes, larger), |all, x| larger(all, *x))
}

/// Folds the upper half of the lanes into the lower, until one is left.
#[inline(always)]
fn fold(mut lanes: [f32; LANES], both: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        for (a, b) in low.iter_mut().zip(high) {
            *a = both(*a, *b);
        }
        half /= 2;
    }
    lanes[0]
}
