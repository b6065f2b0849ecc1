//! One linear on its way on the processor: its weight, and H^-1 of the columns that are left.

use std::borrow::Cow;
use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::super::{SolveError, check_size};
use super::inverse::{ROWS, downdate, inverse, inverse_factor, product, symmetric_row};
use super::neurons::one_at_a_time;
use super::{Removal, StructuredLayer};

/// A linear of which whole columns go, on the processor.
#[derive(Clone, Debug)]
pub struct StructuredLinear {
    n: usize,
    /// rows x n.
    pub(super) weight: Vec<f64>,
    /// H^-1 of the columns that are left, n x n, its upper triangle.
    pub(super) inverse: Vec<f64>,
    /// The columns that went.
    gone: Vec<usize>,
    energy: f64,
    damping_used: f64,
}

/// What removing some columns D takes, with L L^T = [H^-1_DD].
struct ColumnRemoval {
    /// L^-1, k x k.
    factor: Vec<f64>,
    /// L^-1 W_D^T, k x rows.
    spread: Vec<f64>,
}

impl ColumnRemoval {
    /// tr(W_D [H^-1_DD]^-1 W_D^T).
    fn error(&self) -> f64 {
        self.spread.iter().map(|x| x * x).sum()
    }
}

impl StructuredLinear {
    /// A linear with its weight (rows x n, row-major) and the symmetric Gram S (n x n) of what it reads. The weights of dead columns,
    /// those with S_jj = 0, become 0. n^3 + 2 rows n^2 operations.
    ///
    /// # Errors
    /// When sizes do not fit, a value is not finite, or S cannot be factorised however much it is damped.
    pub fn new(n: usize, mut weight: Vec<f64>, gram: &[f64], damping: f64) -> Result<Self, SolveError> {
        check_size(weight.len(), n)?;
        if let Some(at) = weight.iter().position(|w| !w.is_finite()) {
            return Err(SolveError::WeightNotFinite { row: at / n, column: at % n });
        }
        let (inverse, damping_used) = inverse(gram, n, damping)?;
        let energy = energy(&weight, gram, n);
        for j in (0..n).filter(|j| gram[j * n + j] == 0.0) {
            weight.chunks_exact_mut(n).for_each(|row| row[j] = 0.0);
        }
        Ok(Self { n, weight, inverse, gone: Vec::new(), energy, damping_used })
    }

    /// The weight as it is now, rows x n.
    pub fn weight(&self) -> &[f64] {
        &self.weight
    }

    pub(super) fn rows(&self) -> usize {
        self.weight.len() / self.n
    }

    /// sum_r w_rj^2 of every column.
    fn column_energies(&self) -> Vec<f64> {
        let mut energies = vec![0.0; self.n];
        for row in self.weight.chunks_exact(self.n) {
            energies.iter_mut().zip(row).for_each(|(e, w)| *e += w * w);
        }
        energies
    }

    /// What removing `columns`, ascending, would take.
    fn cut(&self, columns: &[usize]) -> Result<ColumnRemoval, SolveError> {
        let k = columns.len();
        let mut block = vec![0.0; k * k];
        for (a, &i) in columns.iter().enumerate() {
            for (b, &j) in columns[..=a].iter().enumerate() {
                block[a * k + b] = self.inverse[j * self.n + i];
            }
        }
        let factor = inverse_factor(&block, k)?;
        let gone = self.gathered(columns);
        let left = MatRef::from_row_major_slice(&factor, k, k);
        let spread = product(left, MatRef::from_row_major_slice(&gone, k, self.rows()));
        Ok(ColumnRemoval { factor, spread })
    }

    /// Takes `left` (rows x k) times `right` (k x n) off the weight.
    pub(super) fn take_off(&mut self, left: MatRef<'_, f64>, right: &[f64]) {
        let n = self.n;
        let right = MatRef::from_row_major_slice(&right[..left.ncols() * n], left.ncols(), n);
        self.weight.par_chunks_mut(ROWS * n).enumerate().for_each(|(block, rows)| {
            let height = rows.len() / n;
            let target = MatMut::from_row_major_slice_mut(rows, height, n);
            matmul(target, Accum::Add, left.subrows(block * ROWS, height), right, -1.0, Par::Seq);
        });
    }

    /// Counts `columns` among those that went, and makes all of them exactly zero that are zero but for rounding.
    pub(super) fn clear(&mut self, columns: &[usize]) {
        self.gone.extend(columns);
        for row in self.weight.chunks_exact_mut(self.n) {
            self.gone.iter().for_each(|j| row[*j] = 0.0);
        }
    }

    /// W_D^T, k x rows.
    fn gathered(&self, columns: &[usize]) -> Vec<f64> {
        columns.iter().flat_map(|j| self.weight.iter().skip(*j).step_by(self.n).copied()).collect()
    }
}

impl StructuredLayer for StructuredLinear {
    fn duplicate(&self) -> Result<Box<dyn StructuredLayer>, SolveError> {
        Ok(Box::new(self.clone()))
    }

    fn width(&self) -> usize {
        self.n
    }

    fn energy(&self) -> f64 {
        self.energy
    }

    fn damping_used(&self) -> f64 {
        self.damping_used
    }

    fn weight_on_host(&self) -> Result<Cow<'_, [f64]>, SolveError> {
        Ok(Cow::Borrowed(&self.weight))
    }

    fn removal_errors(&self, parts: &[Range<usize>]) -> Result<Vec<f64>, SolveError> {
        let error = |part: &Range<usize>| Ok(self.cut(&part.clone().collect::<Vec<_>>())?.error());
        parts.par_iter().map(error).collect()
    }

    fn diagonal_scores(&self, parts: &[Range<usize>]) -> Result<Vec<f64>, SolveError> {
        let energies = self.column_energies();
        let score = |part: &Range<usize>| {
            let factor = self.cut(&part.clone().collect::<Vec<_>>())?.factor;
            let of_column = |(i, j): (usize, usize)| energies[j] * factor[i * part.len() + i].powi(2);
            Ok(part.clone().enumerate().map(of_column).sum())
        };
        parts.par_iter().map(score).collect()
    }

    fn column_scores(&self) -> Result<Vec<f64>, SolveError> {
        let energies = self.column_energies();
        Ok(energies.iter().enumerate().map(|(j, energy)| energy / self.inverse[j * self.n + j]).collect())
    }

    /// k n^2 + 2 k rows n operations.
    fn remove(&mut self, columns: &[usize]) -> Result<f64, SolveError> {
        let (n, k, rows) = (self.n, columns.len(), self.rows());
        let cut = self.cut(columns)?;
        let mut panel = vec![0.0; k * n];
        for (row, &j) in panel.chunks_exact_mut(n).zip(columns) {
            symmetric_row(&self.inverse, n, j, row);
        }
        let factor = MatRef::from_row_major_slice(&cut.factor, k, k);
        let panel = product(factor, MatRef::from_row_major_slice(&panel, k, n));
        let spread = MatRef::from_row_major_slice(&cut.spread, k, rows).transpose();
        self.take_off(spread, &panel);
        downdate(&mut self.inverse, n, &panel, &panel);
        self.clear(columns);
        Ok(cut.error())
    }

    fn remove_one_at_a_time(&mut self, left: Vec<usize>, count: usize) -> Result<Vec<Removal>, SolveError> {
        one_at_a_time(self, left, count)
    }
}

/// tr(V S V^T) for V = `rows` (rows x n) and a symmetric S (n x n). 2 rows n^2 operations; the sum over rows has a fixed order.
pub(crate) fn energy(rows: &[f64], gram: &[f64], n: usize) -> f64 {
    let gram = MatRef::from_row_major_slice(gram, n, n);
    let of_rows = |rows: &[f64]| {
        let height = rows.len() / n;
        let mut out = vec![0.0; rows.len()];
        let target = MatMut::from_row_major_slice_mut(&mut out, height, n);
        matmul(target, Accum::Replace, MatRef::from_row_major_slice(rows, height, n), gram, 1.0, Par::Seq);
        out.iter().zip(rows).map(|(a, b)| a * b).sum::<f64>()
    };
    let sums: Vec<f64> = rows.par_chunks(ROWS * n).map(of_rows).collect();
    sums.into_iter().sum()
}
