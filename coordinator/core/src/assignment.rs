//! Which worker solves which part: from the parts' costs and the workers' speeds to an owner for each part.

use std::collections::BTreeMap;

use obsdiff_proto::{Method, SparsitySpec, WorkerId};

use crate::PartId;

/// What solving a site of width n costs with a method. The assignment of parts and the times of a plan follow from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SolveCost {
    /// Operations for the site, in units of n^3 / 3: that of one factorisation.
    factorisations: u64,
    /// Operations for each row, in units of n^2, by which packages and parts are cut.
    row: u64,
    /// Operations for each row, in the same units, that are no part of `row`.
    uncut: u64,
    /// Of all these, the operations of a sweep over the columns. The others are products of matrices.
    swept: u64,
    /// Bytes that are read and written for each weight beside the products.
    bytes: u64,
}

/// Bytes that a step of refinement reads and writes for each weight beside its product: seven numbers.
const REFINED_BYTES: u64 = 28;

/// Bytes that a round of alternating directions reads and writes for each weight beside its product: the weight twice, its change twice,
/// the dense one, and its key, which is written, read to find the least that stays, and read again; and the residual.
const ROUND_BYTES: u64 = 36;

impl SolveCost {
    /// That of one sweep over the columns by one factor, as by any method but `admm`, and of so many steps of refinement: 2 for each
    /// and 2 for their first residual. In addition, two products with a triangle measure what the mask changes.
    pub const fn sweep(refine: u32) -> Self {
        let bytes = REFINED_BYTES * refined(refine) / 2;
        Self { factorisations: 1, row: 1 + refined(refine), uncut: 2, swept: 1, bytes }
    }

    /// That of the method, and of the refinement that follows it.
    pub fn of(sparsity: &SparsitySpec) -> Self {
        let (effort, refine) = (sparsity.effort, sparsity.refinement());
        if !matches!(sparsity.method(), Method::Admm) {
            return Self::sweep(refine);
        }
        // An inverse takes three factorisations' operations. Two products measure what the mask changes.
        let inverses = effort.penalties().len() as u64;
        let products = effort.products() as u64 + 2;
        let bytes = ROUND_BYTES * products + REFINED_BYTES * refined(refine) / 2;
        Self { factorisations: 3 * inverses, row: 2 * products + refined(refine), uncut: 0, swept: 0, bytes }
    }

    /// The cost of `rows` rows of a site of this `width` n, by which parts are shared out: whole n^3 for the site.
    pub fn of_rows(self, width: usize, rows: usize) -> u64 {
        let n = width as u64;
        let site = n.saturating_mul(self.factorisations.div_ceil(3));
        n.saturating_mul(n).saturating_mul(site.saturating_add((rows as u64).saturating_mul(self.row)))
    }

    /// The rows that cost as much as the site itself.
    pub(crate) fn rows_of_a_site(self, width: usize) -> u64 {
        (width as u64).saturating_mul(self.factorisations.div_ceil(3)).div_ceil(self.row)
    }

    /// The cost of each row in units of n^2.
    pub(crate) const fn row(self) -> u64 {
        self.row
    }

    /// Floating-point operations for a site of this width n.
    pub(crate) fn site_flops(self, width: usize) -> f64 {
        self.factorisations as f64 * (width as f64).powi(3) / 3.0
    }

    /// Floating-point operations for so many rows of it: of sweeps, and of products.
    pub(crate) fn row_flops(self, width: usize, rows: usize) -> [f64; 2] {
        let each = rows as f64 * (width as f64).powi(2);
        [self.swept, self.row + self.uncut - self.swept].map(|units| units as f64 * each)
    }

    /// Floating-point operations for a site of this width n, and so many rows of it.
    pub fn operations(self, width: usize, rows: usize) -> f64 {
        self.site_flops(width) + self.row_flops(width, rows).iter().sum::<f64>()
    }

    /// Bytes that are read and written for so many rows of it beside the products.
    pub(crate) fn row_bytes(self, width: usize, rows: usize) -> f64 {
        self.bytes as f64 * rows as f64 * width as f64
    }
}

/// A row's operations in so many steps of refinement, in units of n^2.
const fn refined(steps: u32) -> u64 {
    if steps == 0 { 0 } else { 2 * (steps as u64 + 1) }
}

/// Gives every part an owner by least finishing time, the costliest part first (Graham's LPT rule, 1969: on workers of equal speed
/// the last one finishes within 4/3 of the optimum). Ties go to the smaller id. Empty where there is no worker.
///
/// `parts` are (part, cost), `workers` are (worker, speed); a speed of 0 counts as 1.
pub fn owners(parts: &[(PartId, u64)], workers: &[(WorkerId, u64)]) -> BTreeMap<PartId, WorkerId> {
    let mut load = vec![0u128; workers.len()];
    let mut order: Vec<_> = parts.to_vec();
    order.sort_by_key(|&(part, cost)| (std::cmp::Reverse(cost), part));
    let mut owners = BTreeMap::new();
    for (part, cost) in order {
        let finish = |i: usize| (load[i] + u128::from(cost), u128::from(workers[i].1.max(1)));
        let best = (0..workers.len()).min_by(|&a, &b| {
            let ((work_a, speed_a), (work_b, speed_b)) = (finish(a), finish(b));
            // work_a / speed_a against work_b / speed_b, without rounding.
            let (left, right) = (work_a.saturating_mul(speed_b), work_b.saturating_mul(speed_a));
            left.cmp(&right).then(workers[a].0.cmp(&workers[b].0))
        });
        if let Some(i) = best {
            load[i] += u128::from(cost);
            owners.insert(part, workers[i].0);
        }
    }
    owners
}

#[cfg(test)]
mod tests {
    use obsdiff_proto::{PackageId, SiteId};
    use proptest::prelude::*;

    use super::*;

    fn parts(costs: &[u64]) -> Vec<(PartId, u64)> {
        let id = |i: usize| PartId { package: PackageId(0), site: SiteId(i as u32), index: 0 };
        costs.iter().enumerate().map(|(i, &c)| (id(i), c)).collect()
    }

    fn makespan(
        parts: &[(PartId, u64)],
        workers: &[(WorkerId, u64)],
        owners: &BTreeMap<PartId, WorkerId>,
    ) -> f64 {
        let work =
            |w: WorkerId| parts.iter().filter(|(p, _)| owners[p] == w).map(|(_, c)| *c as f64).sum::<f64>();
        workers.iter().map(|&(w, speed)| work(w) / speed as f64).fold(0.0, f64::max)
    }

    fn optimum(costs: &[u64], load: &mut [u64]) -> u64 {
        let Some((&first, rest)) = costs.split_first() else {
            return load.iter().copied().max().unwrap_or(0);
        };
        let tries = (0..load.len()).map(|i| {
            load[i] += first;
            let best = optimum(rest, load);
            load[i] -= first;
            best
        });
        tries.collect::<Vec<_>>().into_iter().min().unwrap()
    }

    proptest! {
        #[test]
        fn equal_workers_finish_within_four_thirds_of_the_optimum(
            costs in prop::collection::vec(1u64..100, 1..8),
            count in 1usize..4,
        ) {
            let workers: Vec<_> = (0..count).map(|i| (WorkerId(i as u64), 7)).collect();
            let parts = parts(&costs);
            let owners = owners(&parts, &workers);
            let best = optimum(&costs, &mut vec![0; count]) as f64 / 7.0;
            prop_assert!(makespan(&parts, &workers, &owners) <= best * 4.0 / 3.0 + 1e-9);
        }

        #[test]
        fn each_part_has_one_owner_and_uneven_workers_stay_near_the_even_share(
            costs in prop::collection::vec(1u64..1_000_000, 0..60),
            speeds in prop::collection::vec(1u64..1000, 1..20),
        ) {
            let workers: Vec<_> = speeds.iter().enumerate().map(|(i, &s)| (WorkerId(i as u64), s)).collect();
            let parts = parts(&costs);
            let owners = owners(&parts, &workers);
            prop_assert!(parts.iter().all(|(p, _)| owners.contains_key(p)) && owners.len() == parts.len());
            // List scheduling on uniform machines: the last part to finish found every worker busy until then.
            let even = costs.iter().sum::<u64>() as f64 / speeds.iter().sum::<u64>() as f64;
            let largest = costs.iter().copied().max().unwrap_or(0) as f64 * speeds.len() as f64 / speeds.iter().sum::<u64>() as f64;
            prop_assert!(makespan(&parts, &workers, &owners) <= even + largest + 1e-9);
        }

        #[test]
        fn does_not_depend_on_the_order_of_its_arguments(
            costs in prop::collection::vec(1u64..50, 1..20),
            speeds in prop::collection::vec(1u64..5, 1..6),
        ) {
            let mut workers: Vec<_> = speeds.iter().enumerate().map(|(i, &s)| (WorkerId(i as u64), s)).collect();
            let mut parts = parts(&costs);
            let forward = owners(&parts, &workers);
            workers.reverse();
            parts.reverse();
            prop_assert_eq!(forward, owners(&parts, &workers));
        }
    }

    #[test]
    fn nobody_owns_where_nobody_is() {
        assert!(owners(&parts(&[3, 4]), &[]).is_empty());
    }
}
