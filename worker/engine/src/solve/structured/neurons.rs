//! Neurons: single columns, many of them.

use faer::MatRef;

use super::super::SolveError;
use super::inverse::{downdate, symmetric_row};
use super::layer::StructuredLinear;
use super::{Columns, Removal, Score, StructuredLayer};

/// Removals whose downdates are applied together, in one product.
pub(crate) const DELAY: usize = 96;

/// Removals of the published code's largest chunk.
pub(crate) const MOST_OF_CHUNK: usize = 1024;

/// Removes `count` of the neurons that lie at the `columns` of a linear, the lowest-scoring first; column j scores
/// sum_r w_rj^2 / [H^-1]_jj. Ties go to the lower index. A step's part is counted from the first of the columns.
///
/// # Errors
/// When neurons are not of one column each, the linear lacks them, or H^-1 is not positive definite.
pub fn neurons<L: StructuredLayer + ?Sized>(
    layer: &mut L,
    columns: Columns,
    count: usize,
    score: Score,
) -> Result<Vec<Removal>, SolveError> {
    columns.check(layer)?;
    if columns.size != 1 {
        return Err(SolveError::Size { rows: columns.count, columns: columns.size, found: layer.width() });
    }
    let count = count.min(columns.count);
    let left = (columns.offset..columns.offset + columns.count).collect();
    let mut steps = match score {
        Score::Exact => layer.remove_one_at_a_time(left, count),
        Score::Published => in_chunks(layer, left, count),
    }?;
    steps.iter_mut().for_each(|step| step.part -= columns.offset);
    Ok(steps)
}

/// [`StructuredLayer::remove_one_at_a_time`]: removes one column at a time of those that are `left`, each by the scores that the last one left. Steps name columns.
///
/// Scores need the diagonals of H^-1 and C = W^T W alone, which are kept up to date. A removal of column p takes h h^T / h_p off
/// H^-1 and s b^T + b s^T off C, with h and c the columns p of either, s = h / h_p and b = c - c_p s / 2. A column is only looked
/// at when it goes, so these are applied [`DELAY`] at a time: for `count` removals, rows n^2 operations for C, 3 count n^2 for
/// downdates and 2 count rows n for the weight, in products, and 3 count DELAY n beside them.
pub(super) fn one_at_a_time(
    layer: &mut StructuredLinear,
    mut left: Vec<usize>,
    count: usize,
) -> Result<Vec<Removal>, SolveError> {
    let n = layer.width();
    let mut column_products = column_products(layer);
    let mut pivots: Vec<f64> = (0..n).map(|j| layer.inverse[j * n + j]).collect();
    let mut energies: Vec<f64> = (0..n).map(|j| column_products[j * n + j]).collect();
    let mut delayed = DelayedRemovals::new(n);
    let mut steps = Vec::with_capacity(count);
    for _ in 0..count {
        let score = |j: usize| energies[j].max(0.0) / pivots[j];
        let Some(column) = take_lowest(&mut left, score, &pivots)? else { break };
        steps.push(Removal { part: column, error: layer.relative(score(column)) });
        let (root, share, other) = delayed.remove(column, &layer.inverse, &column_products);
        for j in 0..n {
            pivots[j] -= root[j] * root[j];
            energies[j] -= 2.0 * share[j] * other[j];
        }
        if delayed.columns.len() == DELAY {
            delayed.apply(layer, &mut column_products);
        }
    }
    delayed.apply(layer, &mut column_products);
    Ok(steps)
}

/// Takes the column of the lowest score out of those that are left; the lower index of equal ones.
///
/// # Errors
/// When its pivot is not positive.
pub(crate) fn take_lowest(
    left: &mut Vec<usize>,
    score: impl Fn(usize) -> f64,
    pivots: &[f64],
) -> Result<Option<usize>, SolveError> {
    let lowest = (0..left.len()).min_by(|a, b| score(left[*a]).total_cmp(&score(left[*b])));
    let Some(column) = lowest.map(|at| left.remove(at)) else { return Ok(None) };
    match pivots[column].partial_cmp(&0.0) {
        Some(std::cmp::Ordering::Greater) => Ok(Some(column)),
        _ => Err(SolveError::NotPositive { damping: 0.0 }),
    }
}

/// W^T W, its upper triangle.
fn column_products(layer: &StructuredLinear) -> Vec<f64> {
    let n = layer.width();
    let mut column_products = vec![0.0; n * n];
    downdate(&mut column_products, n, &layer.weight, &layer.weight);
    column_products.iter_mut().for_each(|x| *x = -*x);
    column_products
}

/// Removals that have not been applied yet, each a row of n values in three matrices.
struct DelayedRemovals {
    n: usize,
    columns: Vec<usize>,
    /// h / sqrt(h_p).
    roots: Vec<f64>,
    /// s = h / h_p.
    shares: Vec<f64>,
    /// b.
    others: Vec<f64>,
}

impl DelayedRemovals {
    fn new(n: usize) -> Self {
        let empty = || Vec::with_capacity(DELAY * n);
        Self { n, columns: Vec::with_capacity(DELAY), roots: empty(), shares: empty(), others: empty() }
    }

    /// Notes the removal of a column; gives its root, share and other.
    fn remove(
        &mut self,
        column: usize,
        inverse: &[f64],
        column_products: &[f64],
    ) -> (&[f64], &[f64], &[f64]) {
        let n = self.n;
        let (mut h, mut c) = (vec![0.0; n], vec![0.0; n]);
        symmetric_row(inverse, n, column, &mut h);
        symmetric_row(column_products, n, column, &mut c);
        let rows =
            self.roots.chunks_exact(n).zip(self.shares.chunks_exact(n)).zip(self.others.chunks_exact(n));
        for ((root, share), other) in rows {
            let (r, s, o) = (root[column], share[column], other[column]);
            h.iter_mut().zip(root).for_each(|(h, root)| *h -= r * root);
            c.iter_mut()
                .zip(share.iter().zip(other))
                .for_each(|(c, (share, other))| *c -= s * other + o * share);
        }
        let (pivot, half) = (h[column], c[column] / 2.0);
        let root = pivot.sqrt();
        let start = self.roots.len();
        self.roots.extend(h.iter().map(|h| h / root));
        self.shares.extend(h.iter().map(|h| h / pivot));
        self.others.extend(c.iter().zip(&h).map(|(c, h)| c - half * (h / pivot)));
        self.columns.push(column);
        (&self.roots[start..], &self.shares[start..], &self.others[start..])
    }

    /// Applies what has been noted.
    fn apply(&mut self, layer: &mut StructuredLinear, column_products: &mut [f64]) {
        let (n, k, rows) = (self.n, self.columns.len(), layer.rows());
        if k == 0 {
            return;
        }
        downdate(&mut layer.inverse, n, &self.roots, &self.roots);
        let both = |a: &[f64], b: &[f64]| [a, b].concat();
        downdate(column_products, n, &both(&self.shares, &self.others), &both(&self.others, &self.shares));
        // Each removed column as it was when it went: what is left of it after the removals before.
        let mut removed = vec![0.0; k * rows];
        for i in 0..k {
            let (before, here) = removed.split_at_mut(i * rows);
            let here = &mut here[..rows];
            here.iter_mut()
                .zip(layer.weight.iter().skip(self.columns[i]).step_by(n))
                .for_each(|(to, w)| *to = *w);
            for (l, before) in before.chunks_exact(rows).enumerate() {
                let share = self.shares[l * n + self.columns[i]];
                here.iter_mut().zip(before).for_each(|(w, before)| *w -= share * before);
            }
        }
        let left = MatRef::from_row_major_slice(&removed, k, rows).transpose();
        layer.take_off(left, &self.shares);
        layer.clear(&self.columns);
        *self = Self::new(n);
    }
}

/// Removes columns of those that are `left` in the chunks of the published code, each by the scores that the last one left. Steps name
/// columns.
fn in_chunks<L: StructuredLayer + ?Sized>(
    layer: &mut L,
    mut left: Vec<usize>,
    count: usize,
) -> Result<Vec<Removal>, SolveError> {
    let mut steps = Vec::with_capacity(count);
    for size in chunks(count) {
        let scores = layer.column_scores()?;
        left.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b)));
        let rest = left.split_off(size);
        left.sort_unstable();
        let error = layer.remove(&left)?;
        let share = layer.relative(error) / size as f64;
        steps.extend(left.iter().map(|column| Removal { part: *column, error: share }));
        left = rest;
    }
    Ok(steps)
}

/// Sizes of the chunks in which the published code removes `count` columns.
fn chunks(count: usize) -> Vec<usize> {
    let (mut done, mut sizes) = (0, Vec::new());
    let mut block = (count as i64 - 512).div_euclid(2);
    while done < count {
        let size = (count - done).min(block.clamp(64, MOST_OF_CHUNK as i64) as usize);
        sizes.push(size);
        done += size;
        block = (block - 512).div_euclid(2);
    }
    sizes
}
