//! Who solves what: parts with costs, workers with speeds -> an owner for each part.

use std::collections::BTreeMap;

use obsdiff_proto::WorkerId;

use crate::PartId;

/// Arithmetic of solving `rows` rows of a site of this `width` n: n^3 for its factorisation, and [`row_cost`] times n^2 for each row.
pub fn solve_cost(width: usize, rows: usize, refine: u32) -> u64 {
    let n = width as u64;
    n.saturating_mul(n).saturating_mul(n.saturating_add((rows as u64).saturating_mul(row_cost(refine))))
}

/// Arithmetic of a row in units of n^2: 1 for the sweep, and where `refine` steps follow, 2 for each and 2 for their first residual.
pub fn row_cost(refine: u32) -> u64 {
    match u64::from(refine) {
        0 => 1,
        steps => 1 + 2 * (steps + 1),
    }
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
