//! What refinement does to a row between two products. A weight is masked where it is 0.

use pulp::{Arch, Simd, WithSimd};

/// Lanes of a sum: fixed, so that sums do not depend on the processor's width of vectors.
const LANES: usize = 32;

/// Values that are summed in f32 before f64 takes over.
const RUN: usize = 32 * LANES;

/// v (V) becomes w s and d becomes w0 s - v (V0 - V), for the row w of `weight` and the row w0 of `dense`.
pub(super) fn offset(v: &mut [f32], d: &mut [f32], weight: &[f32], dense: &[f32], scale: &[f32]) {
    for ((v, d), ((w, w0), s)) in v.iter_mut().zip(d).zip(weight.iter().zip(dense).zip(scale)) {
        *v = w * s;
        *d = w0 * s - *v;
    }
}

/// The error of a row, d A d^T, with damping in A and without.
#[derive(Clone, Copy, Debug)]
pub(super) struct Energies {
    pub(super) damped: f64,
    pub(super) plain: f64,
}

/// The error of a row off by d, where `product` = d A and `damping` is the share of A's diagonal that damping put there.
pub(super) fn energies(d: &[f32], product: &[f32], damping: &[f32]) -> Energies {
    let mut sums = Energies { damped: 0.0, plain: 0.0 };
    for ((d, product), damping) in d.iter().zip(product).zip(damping) {
        let d = f64::from(*d);
        sums.damped += d * f64::from(*product);
        sums.plain += d * (f64::from(*product) - f64::from(*damping) * d);
    }
    sums
}

/// The first direction is the residual at the weights that stay. Returns its square.
pub(super) fn aim(direction: &mut [f32], residual: &[f32], weight: &[f32]) -> f64 {
    direction.iter_mut().zip(residual).zip(weight).for_each(|((p, r), v)| *p = kept(*v, *r));
    dot(direction, direction)
}

/// One step of a row along its direction, by its own step length, and the direction of the next one.
pub(super) struct Advance<'a> {
    pub(super) weight: &'a mut [f32],
    pub(super) residual: &'a mut [f32],
    pub(super) direction: &'a mut [f32],
    /// The direction times A.
    pub(super) product: &'a [f32],
    /// The square of the residual at the weights that stay; 0 where the row has arrived.
    pub(super) square_before: f64,
    /// A row whose square falls to this has arrived.
    pub(super) least: f64,
    /// Whether another step follows.
    pub(super) more: bool,
}

impl Advance<'_> {
    /// Takes the step and returns the square of the new residual at the weights that stay, 0 once the row has arrived. Such a row does not
    /// change.
    pub(super) fn run(self) -> f64 {
        Arch::new().dispatch(self)
    }
}

impl WithSimd for Advance<'_> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> f64 {
        let Self { weight, residual, direction, product, square_before, least, more } = self;
        let length = ratio(square_before, dot(direction, product));
        for ((v, r), (p, q)) in weight.iter_mut().zip(&mut *residual).zip(direction.iter().zip(product)) {
            *v += length * p;
            *r -= length * q;
        }
        if !more {
            return 0.0;
        }
        let square = kept_square(weight, residual);
        if square <= least {
            return 0.0;
        }
        let turn = ratio(square, square_before);
        for (p, (v, r)) in direction.iter_mut().zip(weight.iter().zip(&*residual)) {
            *p = kept(*v, *r) + turn * *p;
        }
        square
    }
}

/// `x`, where the weight `v` stays.
#[inline(always)]
fn kept(v: f32, x: f32) -> f32 {
    if v == 0.0 { 0.0 } else { x }
}

/// a / b for a step; 0 where there is nothing left to divide by.
#[inline(always)]
fn ratio(a: f64, b: f64) -> f32 {
    let ratio = (a / b) as f32;
    if b > 0.0 && ratio.is_finite() { ratio } else { 0.0 }
}

/// The sum of a_j b_j.
#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f64 {
    sum(a, b, |a, b| a * b)
}

/// The sum of r_j^2 over the weights that stay.
#[inline(always)]
fn kept_square(v: &[f32], r: &[f32]) -> f64 {
    sum(v, r, |v, r| kept(v, r) * kept(v, r))
}

#[inline(always)]
fn sum(a: &[f32], b: &[f32], term: impl Fn(f32, f32) -> f32) -> f64 {
    let mut total = 0.0;
    for (a, b) in a.chunks(RUN).zip(b.chunks(RUN)) {
        let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        let rest = a.remainder().iter().zip(b.remainder());
        let rest: f64 = rest.map(|(a, b)| f64::from(term(*a, *b))).sum();
        let mut lanes = [0f32; LANES];
        for (a, b) in a.zip(b) {
            for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
                *lane += term(*a, *b);
            }
        }
        total += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>() + rest;
    }
    total
}
