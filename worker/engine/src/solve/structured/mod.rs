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

pub use bias::{Moments, folded};
pub use heads::heads;
pub(super) use inverse::ROWS;
pub use layer::Layer;
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

/// One removal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    /// The head or neuron that went.
    pub part: usize,
    /// The error it brought, over the energy tr(W S W^T) of its linear's outputs; summed over streams.
    pub error: f64,
}

#[cfg(test)]
mod tests;
