//! Grams: S = sum over observations of alpha X^T X, kept as exact integers.
//!
//! A sum of integers does not depend on order, so neither does anything computed from a Gram: not on the number of workers, nor
//! on which of them saw an observation first, nor on an observation that was taken again after a fault.

mod energy;
mod exponent;
mod packed;
mod placed;
mod round;
mod set;
mod square;
mod sums;

use thiserror::Error;

pub use energy::column_energy;
pub use exponent::{OBSERVATION_LIMIT, SUM_LIMIT, exponent_for};
pub use placed::PlacedGram;
pub use set::GramSet;
pub use square::Real;
pub use sums::{Gram, GramSums, GramSumsMut};

/// Why a Gram did not take an observation or another Gram. It is as it was before the call.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GramError {
    /// An observation or a sum passes the limit of its integers: lower the exponent and gather the package again.
    #[error(
        "column {column} of the Gram overflows at exponent {exponent}: gather it again at a lower exponent"
    )]
    Overflow {
        /// The first column whose diagonal entry is too large.
        column: usize,
        /// The exponent it was too large for.
        exponent: i32,
    },
    /// An activation is NaN or infinite, or its square is beyond f32.
    #[error("feature {column} of the activation is NaN, infinite or too large to square")]
    NotFinite {
        /// The first column that holds such a value.
        column: usize,
    },
    /// The weight of an observation is not a positive, finite number.
    #[error("an observation's weight must be positive and finite")]
    Alpha,
    /// The values given are not a whole number of rows.
    #[error("{values} values are not whole rows of width {width}")]
    Rows {
        /// Values given.
        values: usize,
        /// Width of the Gram.
        width: usize,
    },
    /// Two Grams of different width, exponent or kind cannot be added.
    #[error("Grams of different width, exponent or kind cannot be added")]
    Mismatch,
    /// The device that sums the Gram could not do its work.
    #[error("{0}")]
    Device(String),
}

#[cfg(test)]
mod tests;
