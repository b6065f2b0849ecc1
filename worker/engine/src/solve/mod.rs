//! Pruning one linear, W (rows x n), by its site's Gram, S (n x n). Knows matrices only.
//!
//! [`Factor`] turns S into C, with C C^T = H = S + damping * mean(diag S) I, once for all linears of a site. [`Obs`] prunes by it and
//! spreads each pruned weight's error over the columns to its right. [`Admm`] lets mask and weights take turns. [`magnitude`] and
//! [`wanda`] prune by simpler scores and change nothing else. [`refine`] then moves the weights that stay to the best place for the mask
//! that any of them chose, by the [`ScaledHessian`] that takes the factor's place. [`relative_error`] says what was done to the linear's
//! outputs.

mod admm;
mod cholesky;
mod columns;
mod factor;
mod float;
mod inverse;
mod largest;
pub mod memory;
mod mirror;
mod near;
mod obs;
mod packed;
mod phases;
mod product;
mod quadratic;
mod refine;
mod rows;
mod scaled;
mod scores;
mod select;
mod shifted;
mod site;
mod span;
mod strips;
pub mod structured;

use obsdiff_proto::Target;
use rayon::prelude::*;
use thiserror::Error;

pub use admm::{Admm, AdmmBuffers, SIDE_BY_SIDE, SMALL_LINEAR};
pub use factor::{Factor, stride};
pub use float::Float;
pub use obs::Obs;
pub use packed::PackedUpper;
pub use quadratic::{OutputEnergy, output_energy, relative_error};
pub use refine::refine;
pub use scaled::ScaledHessian;
pub use scores::{magnitude, wanda};
pub use site::{CpuSolver, SiteSettings, SiteSolver, SolvedWeight};

#[cfg(feature = "cuda")]
pub(crate) use {
    factor::{live_mean, raised},
    obs::{prunes_nothing, share},
    scaled::check_upper,
    site::NO_SITE,
};

#[cfg(any(test, feature = "cuda"))]
pub(crate) use scaled::Scales;

/// Columns of a block: unstructured pruning takes its share of each, and errors are spread past a block in one product.
pub const BLOCK: usize = 128;

/// Numbers that a task passes over, at least: below it another thread takes longer to wake than to do its share.
const TASK: usize = 1 << 15;

/// Rows of n numbers that a task takes, at least.
fn task_rows(n: usize) -> usize {
    TASK.div_ceil(n.max(1))
}

/// Why a linear could not be pruned. Its caller knows the names of the site and the linear.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum SolveError {
    /// The Gram holds a NaN or an infinity.
    #[error("the Gram holds a value that is not finite")]
    GramNotFinite,
    /// The Gram cannot be factorised, however much it is damped.
    #[error("the Gram is not positive definite, even with damping {damping}")]
    NotPositive {
        /// The largest damping tried.
        damping: f64,
    },
    /// The damping is negative or not a number.
    #[error("damping {damping} is not a number of at least 0")]
    Damping {
        /// The damping asked for.
        damping: f64,
    },
    /// The weight holds a NaN or an infinity.
    #[error("the weight holds a value that is not finite in row {row}, column {column}")]
    WeightNotFinite {
        /// The first row with such a value.
        row: usize,
        /// Its first column with such a value.
        column: usize,
    },
    /// A weight or a Gram does not have the size it should have.
    #[error("{found} values were given where a matrix of {rows} x {columns} was expected")]
    Size {
        /// Rows expected.
        rows: usize,
        /// Columns expected.
        columns: usize,
        /// Values given.
        found: usize,
    },
    /// A ratio outside 0..=1, or N:M with N not below M.
    #[error("the target {0:?} cannot be met: a ratio lies within 0..1, and N is smaller than M")]
    Target(Target),
    /// The device that solves could not do its work.
    #[error("{0}")]
    Device(String),
}

/// Refuses what no solver can work with: a weight that is not rows x n or not finite, a target that says nothing.
pub(crate) fn check(weight: &[f32], n: usize, target: &Target) -> Result<(), SolveError> {
    let valid = match *target {
        Target::Unstructured { ratio } => (0.0..=1.0).contains(&ratio),
        Target::NToM { n, m } => n < m,
        // Heads and neurons are no weights of one linear alone: see `structured`.
        Target::Structured { .. } => false,
    };
    if !valid {
        return Err(SolveError::Target(*target));
    }
    check_size(weight.len(), n)?;
    // Whole rows first: a fold without an early way out is vectorised.
    let finite = |row: &[f32]| row.iter().fold(true, |all, w| all & (w.abs() < f32::INFINITY));
    let row = weight.par_chunks_exact(n).with_min_len(task_rows(n)).position_first(|row| !finite(row));
    match row.and_then(|row| Some((row, weight[row * n..].iter().position(|w| !w.is_finite())?))) {
        Some((row, column)) => Err(SolveError::WeightNotFinite { row, column }),
        None => Ok(()),
    }
}

/// Refuses a number of values that is not rows x n.
pub(crate) fn check_size(values: usize, n: usize) -> Result<(), SolveError> {
    if n > 0 && values.is_multiple_of(n) {
        Ok(())
    } else {
        Err(SolveError::Size { rows: values / n.max(1), columns: n, found: values })
    }
}

#[cfg(test)]
mod tests;
