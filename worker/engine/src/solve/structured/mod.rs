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

use std::borrow::Cow;
use std::ops::Range;

use super::SolveError;

pub use bias::{Moments, folded};
pub use heads::heads;
pub(super) use inverse::ROWS;
pub use layer::StructuredLinear;
pub(crate) use layer::energy;
pub use neurons::neurons;
pub(crate) use neurons::{DELAY, MOST_OF_CHUNK};
#[cfg(feature = "cuda")]
pub(crate) use {bias::is_constant, inverse::inverse_factor, neurons::take_lowest};

/// A linear of which whole columns go, on the device that solves it: its weight W (rows x n), and H^-1 of the columns that are left. D are
/// columns, ascending.
pub trait StructuredLayer: Send + Sync {
    /// The same in memory of its own.
    ///
    /// # Errors
    /// [`SolveError::Device`].
    fn duplicate(&self) -> Result<Box<dyn StructuredLayer>, SolveError>;

    /// Columns: n.
    fn width(&self) -> usize;

    /// tr(W S W^T) of the weight as it was given.
    fn energy(&self) -> f64;

    /// The damping with which the factorisation went through.
    fn damping_used(&self) -> f64;

    /// The weight as it is now, rows x n. Columns that went are exactly zero.
    ///
    /// # Errors
    /// [`SolveError::Device`].
    fn weight_on_host(&self) -> Result<Cow<'_, [f64]>, SolveError>;

    /// tr(W_D [H^-1_DD]^-1 W_D^T) of the columns D of each part: the error of removing it alone.
    ///
    /// # Errors
    /// [`SolveError::NotPositive`], [`SolveError::Device`].
    fn removal_errors(&self, parts: &[Range<usize>]) -> Result<Vec<f64>, SolveError>;

    /// The published score of each part: the sum over its columns of sum_r w_rj^2 times the square of L^-1's diagonal, with
    /// L L^T = [H^-1_DD].
    ///
    /// # Errors
    /// [`SolveError::NotPositive`], [`SolveError::Device`].
    fn diagonal_scores(&self, parts: &[Range<usize>]) -> Result<Vec<f64>, SolveError>;

    /// sum_r w_rj^2 / [H^-1]_jj of every column j.
    ///
    /// # Errors
    /// [`SolveError::Device`].
    fn column_scores(&self) -> Result<Vec<f64>, SolveError>;

    /// Removes `columns`, ascending: the columns that stay take the update, H^-1 loses them. The error that this adds.
    ///
    /// # Errors
    /// [`SolveError::NotPositive`], [`SolveError::Device`].
    fn remove(&mut self, columns: &[usize]) -> Result<f64, SolveError>;

    /// Removes `count` columns of those that are `left`, one at a time, each by the [scores](Self::column_scores) that the last one left.
    /// Steps name columns.
    ///
    /// # Errors
    /// [`SolveError::NotPositive`], [`SolveError::Device`].
    fn remove_one_at_a_time(&mut self, left: Vec<usize>, count: usize) -> Result<Vec<Removal>, SolveError>;

    /// An error of this linear as a share of what it puts out.
    fn relative(&self, error: f64) -> f64 {
        if self.energy() > 0.0 { error / self.energy() } else { error }
    }
}

impl StructuredLayer for Box<dyn StructuredLayer> {
    fn duplicate(&self) -> Result<Box<dyn StructuredLayer>, SolveError> {
        (**self).duplicate()
    }

    fn width(&self) -> usize {
        (**self).width()
    }

    fn energy(&self) -> f64 {
        (**self).energy()
    }

    fn damping_used(&self) -> f64 {
        (**self).damping_used()
    }

    fn weight_on_host(&self) -> Result<Cow<'_, [f64]>, SolveError> {
        (**self).weight_on_host()
    }

    fn removal_errors(&self, parts: &[Range<usize>]) -> Result<Vec<f64>, SolveError> {
        (**self).removal_errors(parts)
    }

    fn diagonal_scores(&self, parts: &[Range<usize>]) -> Result<Vec<f64>, SolveError> {
        (**self).diagonal_scores(parts)
    }

    fn column_scores(&self) -> Result<Vec<f64>, SolveError> {
        (**self).column_scores()
    }

    fn remove(&mut self, columns: &[usize]) -> Result<f64, SolveError> {
        (**self).remove(columns)
    }

    fn remove_one_at_a_time(&mut self, left: Vec<usize>, count: usize) -> Result<Vec<Removal>, SolveError> {
        (**self).remove_one_at_a_time(left, count)
    }
}

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

    fn of(self, part: usize) -> Range<usize> {
        let start = self.offset + part * self.size;
        start..start + self.size
    }

    fn ranges(self, parts: &[usize]) -> Vec<Range<usize>> {
        parts.iter().map(|part| self.of(*part)).collect()
    }

    /// Checks that the parts lie within a linear.
    fn check<L: StructuredLayer + ?Sized>(self, layer: &L) -> Result<(), SolveError> {
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
