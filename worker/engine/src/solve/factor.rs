//! From a Gram to the factor that pruning works with.

use std::ops::Range;

use faer::MatRef;

use super::SolveError;
use super::cholesky::cholesky;
use super::float::Float;
use super::mirror::{isolate, mirror};

/// The largest damping tried.
const MOST_DAMPING: f64 = 1.0;

/// Where raising a damping of 0 starts.
const LEAST_DAMPING: f64 = 1e-4;

/// Values between the starts of two rows of an n x n square. Never a multiple of a page: a power of two would put a whole column
/// into a few cache sets.
pub const fn stride(n: usize) -> usize {
    n.next_multiple_of(16) + if n >= 512 { 16 } else { 0 }
}

/// Gives the Gram again in f64, where it is known to more digits than f32 holds.
type Precise<'a> = Option<&'a (dyn Fn() -> Vec<f64> + Sync)>;

/// A site's Gram S and a factor of it, damped, in one square: C, an upper triangle, with C C^T = H = S + damping * mean(diag S) I. Its
/// inverse U is the factor of the inverse, H^-1 = U^T U, in which OBS is usually written; C replaces it at half the arithmetic.
///
/// Shared by all linears of the site. 4 n^2 bytes; while an f32 factorisation is tried again in f64, 12 n^2.
#[derive(Clone, Debug)]
pub struct Factor {
    n: usize,
    /// Strict upper triangle: S. Lower triangle: J C J, with J the reversal of rows and columns.
    square: Vec<f32>,
    /// S_jj.
    diagonal: Vec<f64>,
    damping_used: f64,
}

impl Factor {
    /// Factorises a Gram S in the type T of its values. `upper` holds its upper triangle, diagonal included, as an n x n row-major
    /// matrix whose rows start [`stride`]`(n)` apart; what lies below the diagonal is ignored. S may be divided by any number:
    /// nothing that is pruned depends on it.
    ///
    /// Columns with S_jj = 0 are dead: they take no part in the mean of the diagonal. 1/3 n^3 operations: one Cholesky
    /// factorisation of J H J = L L^T, C = J L J.
    ///
    /// # Errors
    /// [`SolveError::GramNotFinite`]; [`SolveError::NotPositive`] when H has no factor in f64 and damping raised tenfold, again and
    /// again up to 1.0, does not help; [`SolveError::Damping`]; [`SolveError::Size`].
    pub fn new<T: Float>(n: usize, upper: Vec<T>, damping: f64) -> Result<Self, SolveError> {
        Self::checked(n, upper, damping, None)
    }

    /// Factorises a Gram S in f32 as [`Self::new`] does. Where that fails, `precise` gives its upper triangle again, in the same layout: what
    /// f32 has rounded away may be what makes it positive.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_precise(
        n: usize,
        upper: Vec<f32>,
        damping: f64,
        precise: &(dyn Fn() -> Vec<f64> + Sync),
    ) -> Result<Self, SolveError> {
        Self::checked(n, upper, damping, Some(precise))
    }

    fn checked<T: Float>(
        n: usize,
        upper: Vec<T>,
        damping: f64,
        precise: Precise<'_>,
    ) -> Result<Self, SolveError> {
        let row = stride(n);
        if n == 0 || upper.len() != n * row {
            return Err(SolveError::Size { rows: n, columns: row, found: upper.len() });
        }
        if !(damping >= 0.0 && damping.is_finite()) {
            return Err(SolveError::Damping { damping });
        }
        // Within the pool from here on: entering it for each block would take as long as the block.
        rayon::scope(|_| Self::damped(n, upper, damping, precise))
    }

    fn damped<T: Float>(
        n: usize,
        mut upper: Vec<T>,
        damping: f64,
        precise: Precise<'_>,
    ) -> Result<Self, SolveError> {
        let row = stride(n);
        let diagonal: Vec<f64> = (0..n).map(|j| upper[j * row + j].to_f64()).collect();
        let mut next = Some(damping);
        while let Some(damping_used) = next {
            let added = damping_used * live_mean(&diagonal);
            if factorise(&mut upper, n, &diagonal, added)? {
                let square = T::into_f32(upper);
                return Ok(Self { n, square, diagonal, damping_used });
            }
            if T::HAS_WIDER && factorise_wider(&mut upper, &diagonal, added, precise)? {
                let square = T::into_f32(upper);
                return Ok(Self { n, square, diagonal, damping_used });
            }
            next = raised(damping_used);
        }
        Err(SolveError::NotPositive { damping: damping.max(MOST_DAMPING) })
    }

    /// Columns of the linears: n.
    pub const fn width(&self) -> usize {
        self.n
    }

    /// The damping with which the factorisation went through: the one asked for, or one raised tenfold until it did.
    pub const fn damping_used(&self) -> f64 {
        self.damping_used
    }

    /// S_jj of every column, without damping; 0 for a dead one.
    pub fn diagonal(&self) -> &[f64] {
        &self.diagonal
    }

    /// The columns that no observation ever touched: S_jj = 0.
    pub fn dead(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.n).filter(|&j| self.diagonal[j] == 0.0)
    }

    /// What this damping adds to every S_jj.
    pub(super) fn added_by(&self, damping: f64) -> f64 {
        damping * live_mean(&self.diagonal)
    }

    /// The square and the diagonal, for what comes after pruning.
    pub(super) fn into_parts(self) -> (Vec<f32>, Vec<f64>) {
        (self.square, self.diagonal)
    }

    /// The square that holds S above its diagonal and J C J below and on it; rows start [`stride`] apart.
    pub(super) fn square(&self) -> &[f32] {
        &self.square
    }

    /// C_ij for i in `rows` and j in `columns`; what lies below the diagonal means nothing.
    pub(super) fn block_of_c(&self, rows: Range<usize>, columns: Range<usize>) -> MatRef<'_, f32> {
        let reversed = MatRef::from_row_major_slice_with_stride(&self.square, self.n, self.n, stride(self.n));
        let c = reversed.reverse_rows_and_cols();
        c.submatrix(rows.start, columns.start, rows.len(), columns.len())
    }

    /// C_ij, for i <= j.
    #[inline]
    pub(super) fn c(&self, i: usize, j: usize) -> f32 {
        self.square[(self.n - 1 - i) * stride(self.n) + self.n - 1 - j]
    }
}

/// The mean over live columns, 1 when all are dead.
pub(crate) fn live_mean(diagonal: &[f64]) -> f64 {
    let live = diagonal.iter().filter(|d| **d != 0.0);
    match live.clone().count() {
        0 => 1.0,
        count => live.sum::<f64>() / count as f64,
    }
}

/// The damping to try after `damping` has failed.
pub(crate) fn raised(damping: f64) -> Option<f64> {
    (damping < MOST_DAMPING).then(|| (damping * 10.0).clamp(LEAST_DAMPING, MOST_DAMPING))
}

/// Puts J C J into the lower triangle of the square whose strict upper triangle is S's. False when a pivot fails.
fn factorise<T: Float>(square: &mut [T], n: usize, diagonal: &[f64], added: f64) -> Result<bool, SolveError> {
    mirror_damped(square, n, diagonal, added)?;
    Ok(cholesky(square, n, stride(n)))
}

/// Puts J H J into the lower triangle of the square whose strict upper triangle is S's.
pub(super) fn mirror_damped<T: Float>(
    square: &mut [T],
    n: usize,
    diagonal: &[f64],
    added: f64,
) -> Result<(), SolveError> {
    let row = stride(n);
    if !mirror(square, n, row) || diagonal.iter().any(|d| !d.is_finite()) {
        return Err(SolveError::GramNotFinite);
    }
    for (j, &d) in diagonal.iter().enumerate() {
        let i = n - 1 - j;
        if d == 0.0 {
            isolate(square, n, row, j);
        }
        // A dead column must have some diagonal; with its row and column clear, nothing depends on which.
        let dead_without_damping = d == 0.0 && added == 0.0;
        square[i * row + i] = T::from_f64(if dead_without_damping { 1.0 } else { d + added });
    }
    Ok(())
}

/// The same in f64, for a square of which f32 failed: from the Gram's precise numbers where they are known.
fn factorise_wider<T: Float>(
    square: &mut [T],
    diagonal: &[f64],
    added: f64,
    precise: Precise<'_>,
) -> Result<bool, SolveError> {
    let (n, row) = (diagonal.len(), stride(diagonal.len()));
    let (mut wider, diagonal) = match precise {
        Some(precise) => {
            let wider = precise();
            if wider.len() != square.len() {
                return Err(SolveError::Size { rows: n, columns: row, found: wider.len() });
            }
            // Columns that are dead in f32 stay so.
            let of = |(j, d): (usize, &f64)| if *d == 0.0 { 0.0 } else { wider[j * row + j] };
            let diagonal: Vec<f64> = diagonal.iter().enumerate().map(of).collect();
            (wider, diagonal)
        }
        None => (square.iter().map(|x| x.to_f64()).collect(), diagonal.to_vec()),
    };
    if !factorise(&mut wider, n, &diagonal, added)? {
        return Ok(false);
    }
    for (i, (narrow, wide)) in square.chunks_exact_mut(row).zip(wider.chunks_exact(row)).enumerate() {
        narrow[..=i].iter_mut().zip(wide).for_each(|(n, w)| *n = T::from_f64(*w));
    }
    Ok(true)
}
