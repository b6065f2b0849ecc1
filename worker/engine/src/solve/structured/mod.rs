//! Removing whole columns of a linear, those that one attention head or one neuron feeds, with the update of the columns that stay.
//!
//! The columns D of a part go with error tr(W_D [H^-1_DD]^-1 W_D^T) and the update -W_D [H^-1_DD]^-1 H^-1_D: of the others;
//! H^-1 is downdated by the same Schur complement, never refactored. All in f64: an explicit inverse that is downdated thousands
//! of times has no use for less.

mod bias;
mod heads;
mod inverse;
mod layer;
mod neurons;

use super::SolveError;

pub use bias::{Moments, folded};
pub use heads::heads;
pub(super) use inverse::ROWS;
pub use layer::StructuredLinear;
pub(super) use neurons::DELAY;
pub use neurons::neurons;

/// How parts are scored and how many go between two scorings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// By the error of removing the part; one part at a time.
    Exact,
    /// As the published code does: heads by the diagonal of a Cholesky factor, streams by reciprocal rank fusion; neurons in chunks.
    Published,
}

/// Where the parts of a structure lie among a linear's columns: part i is the `size` columns from `offset + i * size` on. Other columns
/// are never removed, but take their share of every update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The first column of the first part.
    pub offset: usize,
    /// Columns of one part.
    pub size: usize,
    /// How many parts there are.
    pub count: usize,
}

impl Columns {
    /// Parts of `size` columns each that are all of `width` columns; a rest belongs to none.
    pub fn all(width: usize, size: usize) -> Self {
        Self { offset: 0, size, count: width.checked_div(size).unwrap_or(0) }
    }

    fn of(self, part: usize) -> Vec<usize> {
        let start = self.offset + part * self.size;
        (start..start + self.size).collect()
    }

    /// Checks that the parts lie within a linear.
    fn check(self, layer: &StructuredLinear) -> Result<(), SolveError> {
        let end = self.size.checked_mul(self.count).and_then(|columns| columns.checked_add(self.offset));
        if self.size == 0 || end.is_none_or(|end| end > layer.width()) {
            return Err(SolveError::Size { rows: self.count, columns: self.size, found: layer.width() });
        }
        Ok(())
    }
}

/// One removal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Removal {
    /// The head or neuron that went.
    pub part: usize,
    /// The error it brought, over the energy tr(W S W^T) of its linear's outputs; summed over streams.
    pub error: f64,
}

#[cfg(test)]
mod tests;
