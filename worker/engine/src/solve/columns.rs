//! The columns of one block of one strip, left to right: the inner loop of OBS.

use pulp::{Arch, Simd, WithSimd};

use super::span::BlockFactor;
use super::strips::LANES;

/// Columns whose pending errors are gathered together: each error is loaded once for all of them.
const GANG: usize = 4;

/// Which weights of a block go.
#[derive(Clone, Copy)]
pub(super) enum BlockRule {
    /// Those whose key is below the limit.
    Below(u32),
    /// `n` of each group of `m` columns, chosen when the columns left of the group are done; of a shorter tail, floor(n * tail / m).
    NToM { n: usize, m: usize },
}

/// Prunes one block of a strip. `weight` and `errors` are columns x [`LANES`]; `keys` decides for [`BlockRule::Below`] and is scratch for
/// the other. Pruned weights become 0, their errors w / U_jj are left in `errors` (0 for the others) and are spread over the
/// columns to the right within the block.
///
/// columns^2 * [`LANES`] operations on columns * [`LANES`] * 12 bytes, which stay in the innermost caches.
pub(super) fn prune(
    weight: &mut [f32],
    errors: &mut [f32],
    keys: &mut [u32],
    block: &BlockFactor,
    rule: BlockRule,
) {
    Arch::new().dispatch(Prune { weight, errors, keys, block, rule });
}

struct Prune<'a> {
    weight: &'a mut [f32],
    errors: &'a mut [f32],
    keys: &'a mut [u32],
    block: &'a BlockFactor,
    rule: BlockRule,
}

impl WithSimd for Prune<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let columns = self.block.columns;
        let group = match self.rule {
            BlockRule::Below(_) => columns,
            BlockRule::NToM { m, .. } => m,
        };
        for first in (0..columns).step_by(group) {
            let end = columns.min(first + group);
            let limit = match self.rule {
                BlockRule::Below(limit) => limit,
                BlockRule::NToM { n, m } => {
                    self.gather(simd, first, end, 0, first);
                    self.rank(simd, first, end);
                    (n * (end - first) / m) as u32
                }
            };
            for gang in (first..end).step_by(GANG) {
                let gang_end = end.min(gang + GANG);
                self.gather(simd, gang, gang_end, if group == columns { 0 } else { first }, gang);
                self.eliminate(simd, gang, gang_end, limit);
            }
        }
    }
}

impl Prune<'_> {
    /// Takes the errors of columns `from..to` off the weights of columns `first..end`.
    #[inline(always)]
    fn gather<S: Simd>(&mut self, simd: S, first: usize, end: usize, from: usize, to: usize) {
        if from == to {
            return;
        }
        let errors = S::as_simd_f32s(&self.errors[from * LANES..to * LANES]).0;
        let mut column = first;
        while column + GANG <= end {
            let weight = &mut self.weight[column * LANES..(column + GANG) * LANES];
            let u = [0, 1, 2, 3].map(|c| self.block.row(column + c, from, to));
            gather_gang(simd, S::as_mut_simd_f32s(weight).0, errors, u);
            column += GANG;
        }
        for column in column..end {
            let weight = &mut self.weight[column * LANES..(column + 1) * LANES];
            gather_column(simd, S::as_mut_simd_f32s(weight).0, errors, self.block.row(column, from, to));
        }
    }

    /// Replaces the keys of a group by each weight's rank in its row's group, ties by column.
    #[inline(always)]
    fn rank<S: Simd>(&mut self, _: S, first: usize, end: usize) {
        let columns = self.weight[first * LANES..end * LANES].chunks_exact(LANES);
        // The errors of columns not yet reached are free: they hold the scores meanwhile.
        let scores = &mut self.errors[first * LANES..end * LANES];
        for (c, (column, scores)) in columns.zip(scores.chunks_exact_mut(LANES)).enumerate() {
            let reciprocal = self.block.reciprocal[first + c];
            scores.iter_mut().zip(column).for_each(|(s, w)| *s = (w * reciprocal).abs());
        }
        let ranks = &mut self.keys[first * LANES..end * LANES];
        ranks.fill(0);
        for a in 0..end - first {
            let (before, after) = ranks[a * LANES..].split_at_mut(LANES);
            let score_a = &scores[a * LANES..(a + 1) * LANES];
            for (rank, score) in
                after.chunks_exact_mut(LANES).zip(scores[(a + 1) * LANES..].chunks_exact(LANES))
            {
                for lane in 0..LANES {
                    let later_is_lower = u32::from(score[lane] < score_a[lane]);
                    before[lane] += later_is_lower;
                    rank[lane] += 1 - later_is_lower;
                }
            }
        }
    }

    /// Prunes columns `first..end`, whose weights are current, where keys are below `limit`.
    #[inline(always)]
    fn eliminate<S: Simd>(&mut self, simd: S, first: usize, end: usize, limit: u32) {
        let limit = simd.splat_u32s(limit);
        let zero = simd.splat_f32s(0.0);
        for j in first..end {
            let reciprocal = simd.splat_f32s(self.block.reciprocal[j]);
            let (weight, later) = self.weight[j * LANES..end * LANES].split_at_mut(LANES);
            let weight = S::as_mut_simd_f32s(weight).0;
            let errors = S::as_mut_simd_f32s(&mut self.errors[j * LANES..(j + 1) * LANES]).0;
            let keys = S::as_simd_u32s(&self.keys[j * LANES..(j + 1) * LANES]).0;
            for ((w, e), key) in weight.iter_mut().zip(errors.iter_mut()).zip(keys) {
                let goes = simd.less_than_u32s(*key, limit);
                *e = simd.select_f32s(goes, simd.mul_f32s(*w, reciprocal), zero);
                *w = simd.select_f32s(goes, zero, *w);
            }
            for (l, later) in (j + 1..end).zip(later.chunks_exact_mut(LANES)) {
                let u = simd.splat_f32s(-self.block.row(l, j, j + 1)[0]);
                for (w, e) in S::as_mut_simd_f32s(later).0.iter_mut().zip(errors.iter()) {
                    *w = simd.mul_add_f32s(u, *e, *w);
                }
            }
        }
    }
}

/// weight_c -= sum_i u_ci * errors_i for four columns c. Sums stay in registers, two vectors of each column at a time.
#[inline(always)]
fn gather_gang<S: Simd>(simd: S, weight: &mut [S::f32s], errors: &[S::f32s], u: [&[f32]; GANG]) {
    let vectors = LANES / S::F32_LANES;
    let (w0, rest) = weight.split_at_mut(vectors);
    let (w1, rest) = rest.split_at_mut(vectors);
    let (w2, w3) = rest.split_at_mut(vectors);
    for v in (0..vectors).step_by(2) {
        let (mut a0, mut a1, mut a2, mut a3) = (w0[v], w1[v], w2[v], w3[v]);
        let (mut b0, mut b1, mut b2, mut b3) = (w0[v + 1], w1[v + 1], w2[v + 1], w3[v + 1]);
        let u = u[0].iter().zip(u[1]).zip(u[2]).zip(u[3]);
        for (e, (((u0, u1), u2), u3)) in errors.chunks_exact(vectors).zip(u) {
            let (a, b) = (e[v], e[v + 1]);
            let [u0, u1, u2, u3] = [u0, u1, u2, u3].map(|u| simd.splat_f32s(-u));
            (a0, b0) = (simd.mul_add_f32s(u0, a, a0), simd.mul_add_f32s(u0, b, b0));
            (a1, b1) = (simd.mul_add_f32s(u1, a, a1), simd.mul_add_f32s(u1, b, b1));
            (a2, b2) = (simd.mul_add_f32s(u2, a, a2), simd.mul_add_f32s(u2, b, b2));
            (a3, b3) = (simd.mul_add_f32s(u3, a, a3), simd.mul_add_f32s(u3, b, b3));
        }
        (w0[v], w1[v], w2[v], w3[v]) = (a0, a1, a2, a3);
        (w0[v + 1], w1[v + 1], w2[v + 1], w3[v + 1]) = (b0, b1, b2, b3);
    }
}

/// The same for one column.
#[inline(always)]
fn gather_column<S: Simd>(simd: S, weight: &mut [S::f32s], errors: &[S::f32s], u: &[f32]) {
    let vectors = LANES / S::F32_LANES;
    for (e, u) in errors.chunks_exact(vectors).zip(u) {
        let u = simd.splat_f32s(-u);
        for (w, e) in weight.iter_mut().zip(e) {
            *w = simd.mul_add_f32s(u, *e, *w);
        }
    }
}
