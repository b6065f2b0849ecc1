//! Refinement: the weights that pruning left, moved towards the least-squares optimum under their own mask.

use faer::Accum;
use rayon::prelude::*;

use super::product::multiply;
use super::rows::{Advance, Energies, aim, energies, offset};
use super::{ScaledHessian, SolveError, check_size, task_rows};

/// Rows that are refined together, at most: they share each pass over A, and four matrices of their size are held.
pub(super) const REFINED_TOGETHER: usize = 2048;

/// The square of a row's residual over its first one at which the row has arrived: f32 cannot hold what further steps would add to its
/// weights, and the products of such small numbers underflow.
const ARRIVED: f64 = 1e-24;

/// The square of any residual at which its row has arrived: terms of smaller sums lose digits, as the numbers of f32 end at 1e-38.
const LEAST_SQUARE: f64 = 1e-31;

/// Steps after which the residual that they carry along is still that of the weights.
const CARRIED_STEPS: u32 = 100;

/// Moves the weights of `weight` (rows x n, row-major) that are not 0 towards the minimum of tr((W - W0) H (W - W0)^T), with W0 =
/// `dense` and H the damped Gram, by `steps` steps of conjugate gradients on the masked normal equations, Jacobi-scaled. Zeros
/// stay zeros. A row whose error would grow, or cannot be told, stays as it is. Returns the share of tr(dW S dW^T), with S the Gram without
/// damping, that is left: 1 where there was none.
///
/// All rows go together, each with step lengths of its own, until all have arrived. 2 (steps + 1) rows * n^2 operations in products with A,
/// one for the first residual and one a step; 28 bytes of traffic for each weight and step besides. After more than 100 steps, or where
/// f32 rounds the damping away, one product more gives the residual of the weights that were found. Results do not depend on the number
/// of threads.
///
/// # Errors
/// When the weights do not fit A or each other.
pub fn refine(
    weight: &mut [f32],
    dense: &[f32],
    hessian: &ScaledHessian,
    steps: u32,
) -> Result<f64, SolveError> {
    let n = hessian.width();
    check_size(weight.len(), n)?;
    if dense.len() != weight.len() {
        return Err(SolveError::Size { rows: weight.len() / n, columns: n, found: dense.len() });
    }
    let mut band = Band::new(weight.len().min(REFINED_TOGETHER * n), n);
    let mut sums = [0.0; 2];
    for (weight, dense) in weight.chunks_mut(REFINED_TOGETHER * n).zip(dense.chunks(REFINED_TOGETHER * n)) {
        band.cut(weight.len());
        let errors = band.refine(weight, dense, hessian, steps);
        errors.iter().flatten().zip([0, 1].into_iter().cycle()).for_each(|(error, of)| sums[of] += error);
    }
    let [before, after] = sums;
    Ok(if before > 0.0 { (after / before).max(0.0) } else { 1.0 })
}

/// Rows while they are refined, all scaled by s.
struct Band {
    n: usize,
    /// V = W s.
    weight: Vec<f32>,
    /// (V0 - V) A, at masked weights too.
    residual: Vec<f32>,
    /// P: 0 at masked weights.
    direction: Vec<f32>,
    /// P A.
    product: Vec<f32>,
    /// The square of each row's masked residual.
    squares: Vec<f64>,
    /// The square at which the row has arrived.
    least: Vec<f64>,
}

impl Band {
    fn new(values: usize, n: usize) -> Self {
        let matrix = || vec![0.0; values];
        let [squares, least] = [(); 2].map(|()| vec![0.0; values / n]);
        Self {
            n,
            weight: matrix(),
            residual: matrix(),
            direction: matrix(),
            product: matrix(),
            squares,
            least,
        }
    }

    /// Shortens the matrices to as many values as the next band has; only the last band has fewer.
    fn cut(&mut self, values: usize) {
        for matrix in [&mut self.weight, &mut self.residual, &mut self.direction, &mut self.product] {
            matrix.truncate(values);
        }
        self.squares.truncate(values / self.n);
        self.least.truncate(values / self.n);
    }

    /// Refines the rows of one band; tr(dW S dW^T) of each, before and after.
    fn refine(
        &mut self,
        weight: &mut [f32],
        dense: &[f32],
        hessian: &ScaledHessian,
        steps: u32,
    ) -> Vec<[f64; 2]> {
        let n = self.n;
        let scale = hessian.scale();
        // `direction` holds V0 - V until the first direction is known.
        let rows =
            self.weight.par_chunks_mut(n).with_min_len(task_rows(n)).zip(self.direction.par_chunks_mut(n));
        rows.zip(weight.par_chunks(n).zip(dense.par_chunks(n)))
            .for_each(|((v, d), (weight, dense))| offset(v, d, weight, dense, scale));
        multiply(&mut self.residual, Accum::Replace, &self.direction, hessian.square(), n, 1.0);
        let before: Vec<Energies> = self
            .direction
            .par_chunks_mut(n)
            .with_min_len(task_rows(n))
            .zip(self.residual.par_chunks(n))
            .zip(self.weight.par_chunks(n))
            .zip(&mut self.squares)
            .map(|(((direction, residual), weight), square)| {
                let before = energies(direction, residual, hessian.damped());
                *square = aim(direction, residual, weight);
                before
            })
            .collect();
        self.least.iter_mut().zip(&self.squares).for_each(|(least, square)| {
            *least = (ARRIVED * square).max(LEAST_SQUARE);
        });
        for step in 1..=steps {
            multiply(&mut self.product, Accum::Replace, &self.direction, hessian.square(), n, 1.0);
            self.advance(step < steps);
            if self.squares.iter().all(|square| *square == 0.0) {
                break;
            }
        }
        self.leave_offsets(dense, hessian.scale());
        // A diagonal of ones is rounded to this.
        let undamped = hessian.damped().iter().any(|damping| *damping < f32::EPSILON);
        let mut rounded = 0.0;
        if steps > CARRIED_STEPS || undamped {
            multiply(&mut self.residual, Accum::Replace, &self.direction, hessian.square(), n, 1.0);
            // The roundings of a row's n products are as often up as down.
            rounded = f64::from(f32::EPSILON) * (n as f64).sqrt();
        }
        self.finish(weight, hessian, &before, rounded)
    }

    fn advance(&mut self, more: bool) {
        let n = self.n;
        self.weight
            .par_chunks_mut(n)
            .with_min_len(task_rows(n))
            .zip(self.residual.par_chunks_mut(n))
            .zip(self.direction.par_chunks_mut(n))
            .zip(self.product.par_chunks(n))
            .zip(self.squares.par_iter_mut().zip(&self.least))
            .for_each(|((((weight, residual), direction), product), (square, least))| {
                let (square_before, least) = (*square, *least);
                *square = Advance { weight, residual, direction, product, square_before, least, more }.run();
            });
    }

    /// Leaves V0 - V in `direction`.
    fn leave_offsets(&mut self, dense: &[f32], scale: &[f32]) {
        let n = self.n;
        self.direction
            .par_chunks_mut(n)
            .with_min_len(task_rows(n))
            .zip(dense.par_chunks(n))
            .zip(self.weight.par_chunks(n))
            .for_each(|((left, dense), v)| {
                for ((left, v), (dense, s)) in left.iter_mut().zip(v).zip(dense.iter().zip(scale)) {
                    *left = dense * s - v;
                }
            });
    }

    /// Writes the rows whose error fell back to `weight`. An error far below 0 cannot be one, and where rounding adds `rounded` times the
    /// square of V0 - V, less than that says nothing.
    fn finish(
        &self,
        weight: &mut [f32],
        hessian: &ScaledHessian,
        before: &[Energies],
        rounded: f64,
    ) -> Vec<[f64; 2]> {
        let n = self.n;
        let scale = hessian.scale();
        weight
            .par_chunks_mut(n)
            .with_min_len(task_rows(n))
            .zip(self.weight.par_chunks(n))
            .zip(self.residual.par_chunks(n))
            .zip(self.direction.par_chunks(n))
            .zip(before)
            .map(|((((weight, v), residual), left), before)| {
                let after = energies(left, residual, hessian.damped());
                let square: f64 = left.iter().map(|d| f64::from(*d) * f64::from(*d)).sum();
                if after.damped.abs() < before.damped && rounded * square < before.damped {
                    for ((weight, v), s) in weight.iter_mut().zip(v).zip(scale) {
                        *weight = v / s;
                    }
                    [before.plain, after.plain]
                } else {
                    [before.plain, before.plain]
                }
            })
            .collect()
    }
}
