//! Masks by alternating directions: weights and mask take turns until they agree.
//!
//! With V = W s, A = H / (s s^T) of unit diagonal, and V0 the dense weight, tr((V - V0) A (V - V0)^T) is to be least over all V with so
//! many zeros. The weights X are free, their copy Z keeps to the mask, and U adds up by how much they differ:
//!
//! X = (V0 A + rho (Z - U)) (A + rho I)^-1, Z = the largest of |X + U|, U += X - Z
//!
//! Source: ALPS, arXiv 2406.07831; the schedule of penalties is ours ([`Effort`]).

use faer::Accum;
use obsdiff_proto::{Effort, Target};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::largest::{Threshold, drop_of_groups, key, largest};
use super::obs::{prunes_nothing, share};
use super::product::multiply;
use super::shifted::shifted_inverse;
use super::{Float, ScaledHessian, SolveError, check, stride, task_rows};

/// Columns of a site, at most, whose inverses are formed side by side: there is too little in each for all threads.
const SMALL_SITE: usize = 512;

/// Weights, at most, of a linear that others are pruned beside, for the same reason.
pub const SMALL_LINEAR: usize = 1 << 16;

/// Linears that are pruned side by side, at most.
pub const SIDE_BY_SIDE: usize = 8;

/// The inverses of one site, shared by all linears that read it, and the buffers that linears are pruned in, which are reused for the
/// next one.
#[derive(Debug, Default)]
pub struct Admm {
    effort: Option<Effort>,
    n: usize,
    inverses: Vec<Vec<f32>>,
    buffers: AdmmBuffers,
}

/// What one linear is pruned in.
#[derive(Debug, Default)]
pub struct AdmmBuffers {
    /// W0, rows x n.
    dense: Vec<f32>,
    /// Z - U - V0, rows x n.
    change: Vec<f32>,
}

impl Admm {
    /// Reserves memory for the widest site, of so many columns, and for the largest linear, of so many weights, that will be pruned. The
    /// memory of smaller ones would otherwise be left behind in pieces as it grows. Pages that are never written take none.
    pub fn reserve(&mut self, effort: Effort, columns: usize, weights: usize) {
        self.inverses.resize_with(effort.penalties().len(), Vec::new);
        let square = columns * stride(columns);
        let reserve = |of: &mut Vec<f32>, length: usize| of.reserve_exact(length.saturating_sub(of.len()));
        self.inverses.iter_mut().for_each(|inverse| reserve(inverse, square));
        reserve(&mut self.buffers.dense, weights);
        reserve(&mut self.buffers.change, weights);
    }

    /// Prepares for a site: forms (A + rho I)^-1 for each penalty, in the type T. n^3 operations each.
    ///
    /// # Errors
    /// [`SolveError::NotPositive`] when A is not that of a Gram.
    pub fn begin<T: Float>(&mut self, hessian: &ScaledHessian, effort: Effort) -> Result<(), SolveError> {
        self.effort = None;
        self.n = hessian.width();
        self.inverses.resize_with(effort.penalties().len(), Vec::new);
        // Within the pool from here on: entering it for each block would take as long as the block.
        rayon::scope(|_| {
            let form = |square: &mut Vec<T>, (inverse, rho): (&mut Vec<f32>, &f64)| {
                shifted_inverse(hessian, *rho, square, inverse)
            };
            if self.n <= SMALL_SITE {
                let inverses = self.inverses.par_iter_mut().zip(effort.penalties());
                return inverses.try_for_each_init(Vec::new, form);
            }
            let mut square = Vec::new();
            self.inverses.iter_mut().zip(effort.penalties()).try_for_each(|pair| form(&mut square, pair))
        })?;
        self.effort = Some(effort);
        Ok(())
    }

    /// Prunes `weight` (rows x n, row-major) of the site in place and moves the weights that stay towards where the linear's outputs change
    /// least; [`super::refine`] brings them there.
    ///
    /// Unstructured targets prune exactly floor(ratio * weights) of all rows and columns, N:M exactly N of each group of a row; ties go
    /// by (column, row). Columns that are dead become 0, and count among these; where none are to go, nothing changes. 2 * 14 rows * n^2
    /// operations in products (fast) and some passes over the weights. Results do not depend on the number of threads.
    ///
    /// # Errors
    /// When the weight does not fit the site or is not finite, the target cannot be met, or no site was begun.
    pub fn prune(
        &mut self,
        weight: &mut [f32],
        hessian: &ScaledHessian,
        target: &Target,
    ) -> Result<(), SolveError> {
        let mut buffers = std::mem::take(&mut self.buffers);
        let pruned = self.prune_in(&mut buffers, weight, hessian, target);
        self.buffers = buffers;
        pruned
    }

    /// As [`Self::prune`], in buffers that are the caller's: so linears of a site can be pruned side by side.
    ///
    /// # Errors
    /// As [`Self::prune`].
    pub fn prune_in(
        &self,
        buffers: &mut AdmmBuffers,
        weight: &mut [f32],
        hessian: &ScaledHessian,
        target: &Target,
    ) -> Result<(), SolveError> {
        let n = hessian.width();
        check(weight, n, target)?;
        let Some(effort) = self.effort.filter(|_| self.n == n) else {
            return Err(SolveError::Size { rows: n, columns: n, found: self.n });
        };
        if prunes_nothing(target, weight.len()) {
            return Ok(());
        }
        let mut pruned = 0;
        if let Target::Unstructured { ratio } = *target {
            pruned = share(ratio, weight.len());
        }
        for row in weight.chunks_exact_mut(n) {
            hessian.dead().iter().for_each(|j| row[*j] = 0.0);
        }
        rayon::scope(|_| self.alternate(buffers, weight, hessian.scale(), effort, target, pruned));
        Ok(())
    }

    /// Between rounds `weight` holds X + U.
    fn alternate(
        &self,
        buffers: &mut AdmmBuffers,
        weight: &mut [f32],
        scale: &[f32],
        effort: Effort,
        target: &Target,
        pruned: usize,
    ) {
        let (n, AdmmBuffers { dense, change }) = (self.n, buffers);
        dense.clear();
        dense.extend_from_slice(weight);
        change.resize(weight.len(), 0.0);
        let rows = weight.par_chunks_mut(n).with_min_len(task_rows(n));
        rows.for_each(|row| row.iter_mut().zip(scale).for_each(|(v, s)| *v *= s));
        let mask = |weight: &[f32]| match *target {
            Target::NToM { n, m } => Mask::Groups { pruned: n, of: m },
            _ => Mask::Kept(largest(weight, n, pruned)),
        };
        let mut before = effort.penalties().first().copied().unwrap_or(1.0);
        let mut first = true;
        for (inverse, &rho) in self.inverses.iter().zip(effort.penalties()) {
            for _ in 0..effort.rounds() {
                // At the start Z = V0 and U = 0, so that X = V0.
                if !std::mem::take(&mut first) {
                    mask(weight).split(weight, change, dense, scale, (before / rho) as f32);
                    before = rho;
                    multiply(weight, Accum::Add, change, inverse, n, rho as f32);
                }
            }
        }
        mask(weight).finish(weight, scale);
    }
}

/// Which weights stay.
enum Mask {
    Kept(Threshold),
    /// All but the `pruned` smallest of every `of` consecutive columns of a row; floor(pruned * tail / of) of a shorter tail.
    Groups {
        pruned: usize,
        of: usize,
    },
}

impl Mask {
    /// Updates every row, of n weights, by which of its weights stay.
    fn update<R: RowUpdate>(&self, n: usize, rows: impl IndexedParallelIterator<Item = R>) {
        rows.with_min_len(task_rows(n)).enumerate().for_each_init(
            MaskScratch::default,
            |scratch, (r, row)| {
                Arch::new().dispatch(MaskedRow { mask: self, scratch, r, row });
            },
        );
    }

    /// The least key that stays, once those that go for other reasons are 0.
    fn least(&self) -> u32 {
        match self {
            Self::Kept(kept) => kept.least.max(1),
            Self::Groups { .. } => 1,
        }
    }

    /// From X + U in `weight`: Z are the weights that stay and U those that go, the latter taken `times`. Leaves Z - U - V0 in `change` and
    /// V0 + U in `weight`, to which rho * change * (A + rho I)^-1 is to be added.
    fn split(&self, weight: &mut [f32], change: &mut [f32], dense: &[f32], scale: &[f32], times: f32) {
        let n = scale.len();
        let rows = weight.par_chunks_mut(n).zip(change.par_chunks_mut(n)).zip(dense.par_chunks(n));
        self.update(
            n,
            rows.map(|((weight, change), dense)| SplitRow { weight, change, dense, scale, times }),
        );
    }

    /// Leaves W = Z / s in `weight`.
    fn finish(&self, weight: &mut [f32], scale: &[f32]) {
        let n = scale.len();
        self.update(n, weight.par_chunks_mut(n).map(|weight| FinishedRow { weight, scale }));
    }
}

/// Memory in which a thread decides which weights of a row stay.
#[derive(Default)]
struct MaskScratch {
    keys: Vec<u32>,
    order: Vec<u32>,
}

/// What becomes of a row once its mask is known.
trait RowUpdate: Send {
    /// X + U.
    fn values(&self) -> &[f32];

    /// Weights whose key is below `least` go.
    fn apply(self, keys: &[u32], least: u32);
}

/// A row, the `r`-th, and what decides on it. A type and not a closure, so that all of it is compiled for the processor's vector
/// instructions.
struct MaskedRow<'a, R> {
    mask: &'a Mask,
    scratch: &'a mut MaskScratch,
    r: usize,
    row: R,
}

impl<R: RowUpdate> WithSimd for MaskedRow<'_, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { mask, scratch: MaskScratch { keys, order }, r, row } = self;
        let n = row.values().len();
        keys.resize(n, 0);
        keys.iter_mut().zip(row.values()).for_each(|(to, x)| *to = key(*x));
        match mask {
            Mask::Kept(kept) => {
                let first = kept.tied.partition_point(|at| *at < r * n);
                let tied = kept.tied[first..].iter().take_while(|at| **at < (r + 1) * n);
                tied.for_each(|at| keys[at - r * n] = 0);
            }
            Mask::Groups { pruned, of } => drop_of_groups(keys, *pruned, *of, order),
        }
        row.apply(keys, mask.least());
    }
}

struct SplitRow<'a> {
    weight: &'a mut [f32],
    change: &'a mut [f32],
    dense: &'a [f32],
    scale: &'a [f32],
    times: f32,
}

impl RowUpdate for SplitRow<'_> {
    #[inline(always)]
    fn values(&self) -> &[f32] {
        self.weight
    }

    #[inline(always)]
    fn apply(self, keys: &[u32], least: u32) {
        let Self { weight, change, dense, scale, times } = self;
        for ((((y, d), w0), s), key) in weight.iter_mut().zip(change).zip(dense).zip(scale).zip(keys) {
            let v0 = w0 * s;
            let stays = *key >= least;
            let (z, u) = (if stays { *y } else { 0.0 }, if stays { 0.0 } else { times * *y });
            *d = z - u - v0;
            *y = u + v0;
        }
    }
}

struct FinishedRow<'a> {
    weight: &'a mut [f32],
    scale: &'a [f32],
}

impl RowUpdate for FinishedRow<'_> {
    #[inline(always)]
    fn values(&self) -> &[f32] {
        self.weight
    }

    #[inline(always)]
    fn apply(self, keys: &[u32], least: u32) {
        for ((y, s), key) in self.weight.iter_mut().zip(self.scale).zip(keys) {
            *y = if *key >= least { *y / s } else { 0.0 };
        }
    }
}
