//! A site's Gram, and the SYRK that adds an observation to it.

use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use obsdiff_proto::Accumulate;
use rayon::prelude::*;

use super::packed::{Tile, entries, row_start, tiles};
use super::round::{add_rounded, add_scaled};
use super::{GramError, OBSERVATION_LIMIT, SUM_LIMIT, column_energy};

/// Rows and columns of a tile: it and its two operands stay in a core's cache, and it is made of whole registers of the GEMM's kernels.
const TILE: usize = 288;

/// Rows of a strip of a tile on the diagonal; less than a strip's square of it is formed in vain.
const STRIP: usize = 96;

/// Tokens of an observation that are formed in f32 at once. It bounds the copy of the activation that is laid out for the product.
const TOKENS: usize = 1024;

/// Units of the mass: 2^-24 of a row. With the weights that a job may have, 0.01 to 100, it is exact to 3e-6, and 5e9 rows fit.
const MASS_UNIT: f64 = 1.0 / (1u64 << 24) as f64;

/// The upper triangle of an n x n matrix, row after row, row i holding columns i..n.
#[derive(Clone, Debug, PartialEq)]
pub enum GramSums {
    /// Integers in units of 2^-e.
    Exact(Vec<i64>),
    /// 32-bit floats.
    F32(Vec<f32>),
}

/// A Gram's flat buffer, for a collective to reduce in place.
#[derive(Debug)]
pub enum GramSumsMut<'a> {
    /// Integers in units of 2^-e.
    Exact(&'a mut [i64]),
    /// 32-bit floats.
    F32(&'a mut [f32]),
}

/// S = sum over observations of alpha X^T X (n x n) of one site, with its mass: the sum of alpha * rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Gram {
    width: usize,
    exponent: i32,
    sums: GramSums,
    mass: i64,
}

impl Gram {
    /// An empty Gram of a site `width` features wide. `exponent` is e of `exact` sums, see [`super::exponent_for`]; `f32` sums have
    /// none and keep 0.
    pub fn new(width: usize, accumulate: Accumulate, exponent: i32) -> Self {
        let (sums, exponent) = match accumulate {
            Accumulate::Exact => (GramSums::Exact(vec![0; entries(width)]), exponent),
            Accumulate::F32 => (GramSums::F32(vec![0.0; entries(width)]), 0),
        };
        Self { width, exponent, sums, mass: 0 }
    }

    /// Bytes of a Gram's sums.
    pub const fn bytes(width: usize, accumulate: Accumulate) -> u64 {
        let size = match accumulate {
            Accumulate::Exact => size_of::<i64>(),
            Accumulate::F32 => size_of::<f32>(),
        };
        entries(width) as u64 * size as u64
    }

    /// Sums of a Gram of this width.
    pub const fn entries(width: usize) -> usize {
        entries(width)
    }

    /// A Gram of this mass whose sums lie elsewhere.
    #[cfg(feature = "cuda")]
    pub(crate) fn of_mass(width: usize, accumulate: Accumulate, exponent: i32, mass: i64) -> Self {
        let (sums, exponent) = match accumulate {
            Accumulate::Exact => (GramSums::Exact(Vec::new()), exponent),
            Accumulate::F32 => (GramSums::F32(Vec::new()), 0),
        };
        Self { width, exponent, sums, mass }
    }

    /// Features of the site: n.
    pub const fn width(&self) -> usize {
        self.width
    }

    /// e: exact sums are kept in units of 2^-e.
    pub const fn exponent(&self) -> i32 {
        self.exponent
    }

    /// The sum of alpha * rows over the observations taken.
    pub fn mass(&self) -> f64 {
        self.mass as f64 * MASS_UNIT
    }

    /// The mass in its own integer units: what [`Gram::parts_mut`] lets be added to.
    pub const fn mass_units(&self) -> i64 {
        self.mass
    }

    /// S_jj for every column j, in the units of exact sums; none for `f32` sums.
    pub fn diagonal_units(&self) -> Option<Vec<i64>> {
        let GramSums::Exact(sums) = &self.sums else { return None };
        Some((0..self.width).map(|j| sums[row_start(self.width, j)]).collect())
    }

    /// The flat buffer of the upper triangle.
    pub const fn sums(&self) -> &GramSums {
        &self.sums
    }

    /// How the observations are summed.
    pub const fn accumulates(&self) -> Accumulate {
        match self.sums {
            GramSums::Exact(_) => Accumulate::Exact,
            GramSums::F32(_) => Accumulate::F32,
        }
    }

    /// The flat buffer of the upper triangle and the mass in its own integer units, for a collective to add other workers' to.
    pub fn parts_mut(&mut self) -> (GramSumsMut<'_>, &mut i64) {
        let sums = match &mut self.sums {
            GramSums::Exact(sums) => GramSumsMut::Exact(sums),
            GramSums::F32(sums) => GramSumsMut::F32(sums),
        };
        (sums, &mut self.mass)
    }

    /// S_jj for every column j, not divided by the mass.
    pub fn diagonal(&self) -> Vec<f64> {
        let unit = self.value_of_unit();
        let at = |j| row_start(self.width, j);
        match &self.sums {
            GramSums::Exact(sums) => (0..self.width).map(|j| sums[at(j)] as f64 * unit).collect(),
            GramSums::F32(sums) => (0..self.width).map(|j| f64::from(sums[at(j)])).collect(),
        }
    }

    /// The sum of the diagonal.
    pub fn trace(&self) -> f64 {
        self.diagonal().iter().sum()
    }

    /// Adds alpha X^T X for an observation `rows` = X (tokens x n, row-major).
    ///
    /// X^T X is formed in f32 tile by tile; while a tile is in cache, exact sums take it scaled by alpha * 2^e and rounded. tokens *
    /// n^2 operations, 16 bytes moved for each of the n^2 / 2 sums.
    ///
    /// # Errors
    /// [`GramError::Overflow`] when the observation or the sum passes its limit, [`GramError::NotFinite`] for an activation that
    /// cannot be squared. Either leaves the Gram as it was.
    pub fn observe(&mut self, rows: &[f32], alpha: f64) -> Result<(), GramError> {
        let tokens = self.tokens_of(rows, alpha)?;
        self.admit(rows, alpha)?;
        for rows in rows.chunks(TOKENS * self.width) {
            self.add(rows, alpha);
        }
        self.add_mass(tokens, alpha);
        Ok(())
    }

    /// How many rows an observation has.
    ///
    /// # Errors
    /// When its values are not whole rows, or its weight is not one.
    pub(crate) fn tokens_of(&self, rows: &[f32], alpha: f64) -> Result<usize, GramError> {
        if self.width == 0 || !rows.len().is_multiple_of(self.width) {
            return Err(GramError::Rows { values: rows.len(), width: self.width });
        }
        Self::check_alpha(alpha)?;
        Ok(rows.len() / self.width)
    }

    /// Checks an observation's weight.
    pub(crate) fn check_alpha(alpha: f64) -> Result<(), GramError> {
        if alpha > 0.0 && alpha.is_finite() { Ok(()) } else { Err(GramError::Alpha) }
    }

    /// Adds the mass of an observation.
    pub(crate) fn add_mass(&mut self, tokens: usize, alpha: f64) {
        self.mass += (alpha / MASS_UNIT).round() as i64 * tokens as i64;
    }

    /// The same Gram without its sums: what a device needs to know besides.
    #[cfg(feature = "cuda")]
    pub(crate) fn without_sums(&self) -> Self {
        let sums = match self.sums {
            GramSums::Exact(_) => GramSums::Exact(Vec::new()),
            GramSums::F32(_) => GramSums::F32(Vec::new()),
        };
        Self { sums, ..*self }
    }

    /// Adds another Gram of the same site. Exact sums come out the same in any order.
    ///
    /// # Errors
    /// [`GramError::Mismatch`] for a Gram of another width, exponent or kind; [`GramError::Overflow`] when a sum passes its limit.
    pub fn merge(&mut self, other: &Self) -> Result<(), GramError> {
        if (self.width, self.exponent) != (other.width, other.exponent) {
            return Err(GramError::Mismatch);
        }
        let exponent = self.exponent;
        let n = self.width;
        match (&mut self.sums, &other.sums) {
            (GramSums::Exact(sums), GramSums::Exact(others)) => {
                let over = |&j: &usize| {
                    let at = row_start(n, j);
                    sums[at] as f64 + others[at] as f64 >= SUM_LIMIT
                };
                if let Some(column) = (0..n).find(over) {
                    return Err(GramError::Overflow { column, exponent });
                }
                sums.par_iter_mut().zip(others).for_each(|(a, b)| *a = a.wrapping_add(*b));
            }
            (GramSums::F32(sums), GramSums::F32(others)) => {
                sums.par_iter_mut().zip(others).for_each(|(a, b)| *a += b);
            }
            _ => return Err(GramError::Mismatch),
        }
        self.mass += other.mass;
        Ok(())
    }

    /// What one unit of the sums is worth: 2^-e, or 1 for f32 sums.
    pub(crate) fn value_of_unit(&self) -> f64 {
        (-f64::from(self.exponent)).exp2()
    }

    /// Refuses an observation that would overflow, by its energies: no entry of X^T X is larger than the largest of the diagonal.
    fn admit(&self, rows: &[f32], alpha: f64) -> Result<(), GramError> {
        let mut energy = vec![0.0; self.width];
        column_energy(rows, self.width, 1.0, &mut energy);
        // Half of f32's range, because the product rounds where the energy does not. A NaN fails the comparison too.
        let finite = |e: &f64| *e < f64::from(f32::MAX) / 2.0;
        if let Some(column) = energy.iter().position(|e| !finite(e)) {
            return Err(GramError::NotFinite { column });
        }
        let unit = self.value_of_unit();
        let (observation, sum) = match self.sums {
            GramSums::Exact(_) => (OBSERVATION_LIMIT * unit, SUM_LIMIT * unit),
            GramSums::F32(_) => (f64::MAX, f64::from(f32::MAX) / 2.0),
        };
        let over = |(energy, diagonal): (&f64, &f64)| {
            let energy = alpha * energy;
            energy >= observation || energy + diagonal >= sum
        };
        match energy.iter().zip(&self.diagonal()).position(over) {
            Some(column) => Err(GramError::Overflow { column, exponent: self.exponent }),
            None => Ok(()),
        }
    }

    /// Adds at most [`TOKENS`] rows that have been admitted.
    fn add(&mut self, rows: &[f32], alpha: f64) {
        let panels = ObservationPanels::new(rows, self.width);
        let scale = alpha / self.value_of_unit();
        match &mut self.sums {
            GramSums::Exact(sums) => {
                panels.add(sums, |sums, tile, width| add_rounded(sums, tile, width, scale))
            }
            GramSums::F32(sums) => {
                panels.add(sums, |sums, tile, width| add_scaled(sums, tile, width, alpha as f32))
            }
        }
    }
}

/// An observation cut into panels of [`TILE`] columns, each contiguous: a power-of-two row stride would put a whole column into a
/// few cache sets.
struct ObservationPanels {
    width: usize,
    tokens: usize,
    values: Vec<f32>,
}

impl ObservationPanels {
    fn new(rows: &[f32], width: usize) -> Self {
        let tokens = rows.len() / width;
        let mut values = vec![0.0; rows.len()];
        if tokens > 0 {
            values.par_chunks_mut(tokens * TILE).enumerate().for_each(|(p, panel)| {
                let side = panel.len() / tokens;
                for (to, from) in panel.chunks_exact_mut(side).zip(rows.chunks_exact(width)) {
                    to.copy_from_slice(&from[p * TILE..p * TILE + side]);
                }
            });
        }
        Self { width, tokens, values }
    }

    /// The panel that starts at column `start`, tokens x its columns.
    fn at(&self, start: usize) -> MatRef<'_, f32> {
        let side = TILE.min(self.width - start);
        let values = &self.values[start * self.tokens..(start + side) * self.tokens];
        MatRef::from_row_major_slice(values, self.tokens, side)
    }

    /// Forms X^T X tile by tile and hands each to `add` with the sums it belongs to. A tile is one task's alone.
    fn add<T: Send>(&self, sums: &mut [T], add: impl Fn(&mut [&mut [T]], &[f32], usize) + Sync) {
        let scratch = || vec![0.0; TILE * TILE];
        tiles(sums, self.width, TILE).into_par_iter().for_each_init(scratch, |scratch, tile| {
            let Tile { row, column, mut rows } = tile;
            let (left, right) = (self.at(row), self.at(column));
            // A tile on the diagonal is formed in strips, each from its own diagonal to the right.
            let step = if row == column { STRIP } else { TILE };
            for (i, rows) in rows.chunks_mut(step).enumerate() {
                let skip = if row == column { i * step } else { 0 };
                let (height, width) = (rows.len(), right.ncols() - skip);
                let product = &mut scratch[..height * width];
                let out = MatMut::from_row_major_slice_mut(product, height, width);
                let left = left.subcols(i * step, height).transpose();
                let right = right.subcols(skip, width);
                matmul(out, Accum::Replace, left, right, 1.0, Par::Seq);
                add(rows, product, width);
            }
        });
    }
}
