//! The types that Grams are factorised in.

use faer::traits::RealField;

/// The floating-point types a Gram is factorised in.
pub trait Float: RealField + Copy + Default + Send + Sync {
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// The nearest value of this type.
    fn from_f64(x: f64) -> Self;
    /// This value, exactly.
    fn to_f64(self) -> f64;
    /// Neither NaN nor infinite.
    fn is_finite_number(self) -> bool;
    /// A precise square in f32: the same memory where the type is f32 already.
    fn into_f32(square: Vec<Self>) -> Vec<f32>;
    /// Whether a failure in this type is tried again in f64.
    const HAS_WIDER: bool;
}

impl Float for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const HAS_WIDER: bool = true;
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x as Self
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn is_finite_number(self) -> bool {
        self.abs() < Self::INFINITY
    }
    fn into_f32(square: Vec<Self>) -> Vec<f32> {
        square
    }
}

impl Float for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const HAS_WIDER: bool = false;
    #[inline(always)]
    fn from_f64(x: f64) -> Self {
        x
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn is_finite_number(self) -> bool {
        self.abs() < Self::INFINITY
    }
    fn into_f32(square: Vec<Self>) -> Vec<f32> {
        square.into_iter().map(|x| x as f32).collect()
    }
}
