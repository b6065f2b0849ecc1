//! How much pruning changed a linear's outputs, by the Gram alone.

use std::ops::Add;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::factor::stride;
use super::{Factor, SolveError, check_size};

/// Rows of one task.
const ROWS: usize = 192;

/// Columns of S that one product takes.
const COLUMNS: usize = 288;

/// What pruning did to the outputs of a linear, or of some of its rows. Energies of different rows add up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OutputEnergy {
    /// tr(dW S dW^T), with the Gram S, W before and W + dW after pruning and refining.
    pub change: f64,
    /// The same before refining; absent where nothing was refined.
    pub unrefined: Option<f64>,
    /// tr(W S W^T).
    pub whole: f64,
}

impl OutputEnergy {
    /// The energy of the change over that of the outputs; 0 when the outputs were 0 before.
    pub fn relative(&self) -> f64 {
        self.share(self.change)
    }

    /// The same before refining; nothing where nothing was refined.
    pub fn unrefined(&self) -> Option<f64> {
        self.unrefined.map(|change| self.share(change))
    }

    /// The energies once refinement has left this share of the change.
    pub fn refined(self, left: f64) -> Self {
        Self { change: self.change * left, unrefined: Some(self.change), ..self }
    }

    fn share(&self, change: f64) -> f64 {
        if self.whole > 0.0 { (change / self.whole).max(0.0) } else { 0.0 }
    }
}

impl Add for OutputEnergy {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let unrefined = self.unrefined.zip(other.unrefined).map(|(a, b)| a + b);
        Self { change: self.change + other.change, unrefined, whole: self.whole + other.whole }
    }
}

/// tr(dW S dW^T) / tr(W S W^T), with W = `before`, dW = `after` - W (rows x n each, row-major) and S the Gram without damping: the
/// energy of the change of the linear's outputs over that of the outputs. 0 when the outputs were 0 before.
///
/// # Errors
/// As [`output_energy`].
pub fn relative_error(before: &[f32], after: &[f32], factor: &Factor) -> Result<f64, SolveError> {
    output_energy(before, after, factor).map(|energy| energy.relative())
}

/// tr(dW S dW^T) and tr(W S W^T), with W = `before`, dW = `after` - W (rows x n each, row-major) and S the Gram without damping.
///
/// 2 rows * n^2 operations: one product with the upper triangle of S for each trace. Sums over rows are f64 in a fixed order.
///
/// # Errors
/// When either weight does not fit the factor.
pub fn output_energy(before: &[f32], after: &[f32], factor: &Factor) -> Result<OutputEnergy, SolveError> {
    let n = factor.width();
    check_size(before.len(), n)?;
    if after.len() != before.len() {
        return Err(SolveError::Size { rows: before.len() / n, columns: n, found: after.len() });
    }
    let chunks = before.par_chunks(ROWS * n).zip(after.par_chunks(ROWS * n));
    let energies: Vec<(f64, f64)> = chunks
        .map(|(before, after)| {
            let change: Vec<f32> = after.iter().zip(before).map(|(a, b)| a - b).collect();
            (energy(&change, factor), energy(before, factor))
        })
        .collect();
    let (change, whole) = energies.iter().fold((0.0, 0.0), |(c, w), (a, b)| (c + a, w + b));
    Ok(OutputEnergy { change, unrefined: None, whole })
}

/// tr(V S V^T) for the rows V = `rows` (at most [`ROWS`] x n).
fn energy(rows: &[f32], factor: &Factor) -> f64 {
    let n = factor.width();
    let height = rows.len() / n;
    let matrix = MatRef::from_row_major_slice(rows, height, n);
    let gram = MatRef::from_row_major_slice_with_stride(factor.square(), n, n, stride(n));
    let mut product = vec![0.0f32; height * COLUMNS];
    let mut corner = vec![0.0f32; COLUMNS * COLUMNS];
    let mut sum = 0.0;
    for start in (0..n).step_by(COLUMNS) {
        let width = COLUMNS.min(n - start);
        // Above the corner on the diagonal S is whole; of the corner itself only what is above the diagonal is S.
        let mut out = MatMut::from_row_major_slice_mut(&mut product[..height * width], height, width);
        let above = gram.submatrix(0, start, start, width);
        matmul(out.as_mut(), Accum::Replace, matrix.subcols(0, start), above, 1.0, Par::Seq);
        upper_corner(factor, start, width, &mut corner);
        let corner = MatRef::from_row_major_slice(&corner[..width * width], width, width);
        matmul(out, Accum::Add, matrix.subcols(start, width), corner, 1.0, Par::Seq);
        for (row, product) in rows.chunks_exact(n).zip(product.chunks_exact(width)) {
            let row = &row[start..start + width];
            let diagonal = &factor.diagonal()[start..start + width];
            for ((&v, &p), &d) in row.iter().zip(product).zip(diagonal) {
                let v = f64::from(v);
                sum += v * (2.0 * f64::from(p) + v * d);
            }
        }
    }
    sum
}

/// The strict upper triangle of S's block on the diagonal, zero below it.
fn upper_corner(factor: &Factor, start: usize, width: usize, corner: &mut [f32]) {
    let n = factor.width();
    for (i, row) in corner.chunks_exact_mut(width).take(width).enumerate() {
        let from = (start + i) * stride(n) + start;
        row[..=i].fill(0.0);
        row[i + 1..].copy_from_slice(&factor.square()[from + i + 1..from + width]);
    }
}
