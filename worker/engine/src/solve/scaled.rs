//! The damped Gram with a diagonal of ones: what refinement multiplies by.

use faer::Accum;
use rayon::prelude::*;

use super::factor::{live_mean, stride};
use super::product::multiply;
use super::rows::energies;
use super::{Factor, OutputEnergy, SolveError, check_size, task_rows};

/// Rows whose energies are formed together.
const ROWS_TOGETHER: usize = 2048;

/// Rows and columns of a tile that is transposed while it stays in the innermost cache.
const TILE: usize = 64;

/// A = H / (s s^T) with H the Gram of a [`Factor`] under a damping of its own, and s_j = sqrt(H_jj), whole and symmetric. It takes over the
/// memory of the factor, so H is never copied.
#[derive(Clone, Debug)]
pub struct ScaledHessian {
    n: usize,
    /// A; rows start [`stride`] apart.
    square: Vec<f32>,
    /// s_j, the largest being 1.
    scale: Vec<f32>,
    /// The share of H_jj that is damping.
    damped: Vec<f32>,
    /// The columns with S_jj = 0.
    dead: Vec<usize>,
    /// The largest H_jj.
    unit: f64,
}

impl ScaledHessian {
    /// Damps and scales the Gram of a factor that is no longer needed. Dead columns get a one on the diagonal and zeros beside it. n^2
    /// multiplications.
    pub fn new(factor: Factor, damping: f64) -> Self {
        let added = factor.added_by(damping);
        let (square, diagonal) = factor.into_parts();
        Self::scaled(square, Scales::of_damped(&diagonal, added))
    }

    /// The same of a Gram of which no factor is needed: `upper` holds its upper triangle, diagonal included, as [`Factor::new`] takes it.
    ///
    /// # Errors
    /// [`SolveError::GramNotFinite`], [`SolveError::Damping`], [`SolveError::Size`].
    pub fn of_gram(n: usize, upper: Vec<f32>, damping: f64) -> Result<Self, SolveError> {
        check_upper(n, &upper)?;
        let row = stride(n);
        let diagonal: Vec<f64> = (0..n).map(|j| f64::from(upper[j * row + j])).collect();
        let scales = Scales::new(&diagonal, damping)?;
        Ok(Self::scaled(upper, scales))
    }

    /// From the strict upper triangle of S in a square, and what its diagonal says.
    fn scaled(mut square: Vec<f32>, scales: Scales) -> Self {
        let Scales { scale, damped, reciprocals, dead, unit } = scales;
        let n = scale.len();
        let rows = square.par_chunks_mut(stride(n)).with_min_len(task_rows(n));
        rows.zip(&reciprocals).enumerate().for_each(|(i, (row, r))| {
            row[i] = 1.0;
            row[i + 1..n].iter_mut().zip(&reciprocals[i + 1..]).for_each(|(a, other)| *a = *a * r * other);
        });
        fold_down(&mut square, n);
        Self { n, square, scale, damped, dead, unit }
    }

    /// tr(dW S dW^T) and tr(W S W^T), with W = `before`, dW = `after` - W (rows x n each, row-major) and S the Gram without damping.
    ///
    /// 4 rows * n^2 operations: a product with A for each trace. Sums over rows are f64 in a fixed order.
    ///
    /// # Errors
    /// When either weight does not fit.
    pub fn output_energy(&self, before: &[f32], after: &[f32]) -> Result<OutputEnergy, SolveError> {
        let change = self.change(before, after)?;
        let whole = self.energy(before, after, |before, _| before);
        Ok(OutputEnergy { change, unrefined: None, whole })
    }

    /// Of these the first alone.
    ///
    /// # Errors
    /// As [`Self::output_energy`].
    pub fn change(&self, before: &[f32], after: &[f32]) -> Result<f64, SolveError> {
        check_size(before.len(), self.n)?;
        if after.len() != before.len() {
            return Err(SolveError::Size {
                rows: before.len() / self.n,
                columns: self.n,
                found: after.len(),
            });
        }
        Ok(self.energy(before, after, |before, after| after - before))
    }

    /// tr(V S V^T), with V = `of`(before, after).
    fn energy(&self, before: &[f32], after: &[f32], of: impl Fn(f32, f32) -> f32 + Sync) -> f64 {
        let n = self.n;
        let together = before.len().min(ROWS_TOGETHER * n);
        let (mut rows, mut product) = (vec![0.0; together], vec![0.0; together]);
        let mut sum = 0.0;
        for (before, after) in before.chunks(together).zip(after.chunks(together)) {
            let (rows, product) = (&mut rows[..before.len()], &mut product[..before.len()]);
            let pairs = before.par_chunks(n).zip(after.par_chunks(n));
            rows.par_chunks_mut(n).with_min_len(task_rows(n)).zip(pairs).for_each(
                |(row, (before, after))| {
                    let pairs = before.iter().zip(after).zip(&self.scale);
                    row.iter_mut().zip(pairs).for_each(|(v, ((b, a), s))| *v = of(*b, *a) * s);
                },
            );
            multiply(product, Accum::Replace, rows, &self.square, n, 1.0);
            let each = rows.par_chunks(n).with_min_len(task_rows(n)).zip(product.par_chunks(n));
            let plain = each.map(|(row, product)| energies(row, product, &self.damped).plain);
            sum += plain.collect::<Vec<_>>().into_iter().sum::<f64>();
        }
        sum.max(0.0) * self.unit
    }

    /// The same with every value of A changed.
    #[cfg(test)]
    pub(super) fn with_square(mut self, change: impl Fn(f32) -> f32) -> Self {
        self.square.iter_mut().for_each(|a| *a = change(*a));
        self
    }

    /// Columns of the linears: n.
    pub const fn width(&self) -> usize {
        self.n
    }

    /// A, whose rows start [`stride`] apart.
    pub(crate) fn square(&self) -> &[f32] {
        &self.square
    }

    /// s_j of every column, the largest being 1.
    pub(crate) fn scale(&self) -> &[f32] {
        &self.scale
    }

    /// The columns that no observation ever touched: S_jj = 0.
    pub(crate) fn dead(&self) -> &[usize] {
        &self.dead
    }

    /// The share of H_jj that is damping, of every column.
    pub(crate) fn damped(&self) -> &[f32] {
        &self.damped
    }
}

/// What the diagonal of a Gram says of its scaled square: see [`ScaledHessian`].
#[derive(Clone, Debug)]
pub(crate) struct Scales {
    pub(crate) scale: Vec<f32>,
    pub(crate) damped: Vec<f32>,
    /// What rows and columns are multiplied by: 0 for a dead one.
    pub(crate) reciprocals: Vec<f32>,
    pub(crate) dead: Vec<usize>,
    pub(crate) unit: f64,
}

impl Scales {
    /// With this damping of a diagonal.
    ///
    /// # Errors
    /// [`SolveError::Damping`].
    pub(crate) fn new(diagonal: &[f64], damping: f64) -> Result<Self, SolveError> {
        if !(damping >= 0.0 && damping.is_finite()) {
            return Err(SolveError::Damping { damping });
        }
        Ok(Self::of_damped(diagonal, damping * live_mean(diagonal)))
    }

    /// With this much added to a diagonal.
    fn of_damped(diagonal: &[f64], added: f64) -> Self {
        let of_h: Vec<f64> = diagonal.iter().map(|d| d + added).collect();
        // A does not depend on the unit of H: one is taken in which every s is at most 1.
        let unit = of_h.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let columns = || diagonal.iter().zip(&of_h);
        let scale = columns().map(|(_, h)| if *h > 0.0 { (h / unit).sqrt() as f32 } else { 1.0 }).collect();
        let damped = columns().map(|(d, h)| if *d == 0.0 { 1.0 } else { (added / h) as f32 }).collect();
        let reciprocal = |(d, h): (&f64, &f64)| if *d == 0.0 { 0.0 } else { (1.0 / h.sqrt()) as f32 };
        let reciprocals = columns().map(reciprocal).collect();
        let dead = (0..diagonal.len()).filter(|j| diagonal[*j] == 0.0).collect();
        Self { scale, damped, reciprocals, dead, unit }
    }
}

/// Refuses what is no upper triangle of an n x n Gram, rows [`stride`] apart.
///
/// # Errors
/// [`SolveError::Size`], [`SolveError::GramNotFinite`].
pub(crate) fn check_upper(n: usize, upper: &[f32]) -> Result<(), SolveError> {
    let row = stride(n);
    if n == 0 || upper.len() != n * row {
        return Err(SolveError::Size { rows: n, columns: row, found: upper.len() });
    }
    let finite = |(i, values): (usize, &[f32])| {
        values[i..n].iter().fold(true, |all, x| all & (x.abs() < f32::INFINITY))
    };
    if upper.par_chunks(row).with_min_len(task_rows(row)).enumerate().all(finite) {
        Ok(())
    } else {
        Err(SolveError::GramNotFinite)
    }
}

/// Copies the strict upper triangle to the lower one.
pub(super) fn fold_down(square: &mut [f32], n: usize) {
    let row = stride(n);
    for first in (0..n).step_by(TILE) {
        let last = n.min(first + TILE);
        let (above, below) = square.split_at_mut(last * row);
        let above = &mut above[first * row..];
        for i in first..last {
            for j in i + 1..last {
                above[(j - first) * row + i] = above[(i - first) * row + j];
            }
        }
        let above = &*above;
        below.par_chunks_mut(TILE * row).with_min_len(task_rows(TILE * TILE)).enumerate().for_each(
            |(tile, rows)| {
                for (j, to) in (last + tile * TILE..).zip(rows.chunks_mut(row)) {
                    to[first..last].iter_mut().zip(above.chunks(row)).for_each(|(to, from)| *to = from[j]);
                }
            },
        );
    }
}
