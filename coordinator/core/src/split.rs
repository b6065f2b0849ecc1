//! Which sites are solved in parts. A rule of the plan alone: rows that are solved together compete with each other, so the number
//! of workers must have no say in it.

use std::collections::BTreeMap;

use obsdiff_proto::{Inventory, LinearId, Package, SiteId};

use crate::assignment::solve_cost;
use crate::{Part, PartId, Slice};

/// The parts in which a package is solved, by site and row. A site whose solving costs at most `above` stays whole. A larger one is
/// cut into even chunks of rows, so that a part costs at most `above`; but a part keeps at least n rows: below that the
/// factorisation, which every part repeats, would cost more than its rows.
///
/// Package and inventory must fit each other ([`crate::Job::validate`]).
pub fn parts(inventory: &Inventory, package: &Package, above: Option<u64>) -> Vec<Part> {
    let mut by_site: BTreeMap<SiteId, Vec<LinearId>> = BTreeMap::new();
    for target in &package.linears {
        by_site.entry(inventory.linear(target.linear).site).or_default().push(target.linear);
    }
    by_site.into_iter().flat_map(|(site, linears)| site_parts(inventory, site, &linears, above)).collect()
}

fn site_parts(inventory: &Inventory, site: SiteId, linears: &[LinearId], above: Option<u64>) -> Vec<Part> {
    let width = inventory.site(site).width;
    let total: usize = linears.iter().map(|&l| inventory.linear(l).rows).sum();
    let most = match above {
        Some(above) if solve_cost(width, total) > above => rows_within(width, above),
        _ => total,
    };
    let mut parts: Vec<(usize, Vec<Slice>)> = Vec::new();
    for &linear in linears {
        for rows in even_chunks(inventory.linear(linear).rows, most) {
            match parts.last_mut() {
                Some((taken, slices)) if *taken + rows.len() <= most => {
                    *taken += rows.len();
                    slices.push(Slice { linear, rows });
                }
                _ => parts.push((rows.len(), vec![Slice { linear, rows }])),
            }
        }
    }
    let part =
        |(index, (rows, slices))| Part { id: PartId { site, index }, slices, cost: solve_cost(width, rows) };
    (0u32..).zip(parts).map(part).collect()
}

/// The most rows whose solving costs no more than `above`, but at least n.
fn rows_within(width: usize, above: u64) -> usize {
    let n = (width as u64).max(1);
    let rows = above.saturating_sub(solve_cost(width, 0)) / n.saturating_mul(n);
    usize::try_from(rows).unwrap_or(usize::MAX).max(width).max(1)
}

/// Cuts `0..rows` into the fewest chunks of at most `most` rows, even to within one row.
fn even_chunks(rows: usize, most: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let count = rows.div_ceil(most.max(1));
    (0..count).map(move |i| rows * i / count..rows * (i + 1) / count)
}

#[cfg(test)]
mod tests {
    use obsdiff_proto::{Linear, LinearTarget, PackageId, Site, Stream, Target};
    use proptest::prelude::*;

    use super::*;

    fn site_of(width: usize, rows: &[usize]) -> (Inventory, Package) {
        let ids: Vec<_> = (0..rows.len() as u32).map(LinearId).collect();
        let linear = |(i, &rows): (usize, &usize)| Linear { name: format!("l{i}"), rows, site: SiteId(0) };
        let site = Site { name: "l0".to_owned(), width, stream: Stream::Image, linears: ids.clone() };
        let linears = rows.iter().enumerate().map(linear).collect();
        let inventory = Inventory { parameters: 0, units: Vec::new(), sites: vec![site], linears };
        let target = |linear| LinearTarget { linear, target: Target::NToM { n: 2, m: 4 } };
        let linears = ids.into_iter().map(target).collect();
        (inventory, Package { id: PackageId(0), units: 0..0, sites: vec![SiteId(0)], linears })
    }

    #[test]
    fn a_site_within_the_limit_stays_whole() {
        let (inventory, package) = site_of(8, &[8, 8, 8]);
        let cost = solve_cost(8, 24);
        for above in [None, Some(cost)] {
            let parts = parts(&inventory, &package, above);
            assert_eq!(parts.len(), 1);
            assert_eq!((parts[0].slices.len(), parts[0].cost), (3, cost));
        }
        assert!(parts(&inventory, &package, Some(cost - 1)).len() > 1);
    }

    proptest! {
        #[test]
        fn every_row_stands_in_exactly_one_part(
            width in 1usize..40,
            rows in prop::collection::vec(1usize..200, 1..5),
            above in 0u64..2_000_000,
        ) {
            let (inventory, package) = site_of(width, &rows);
            let parts = parts(&inventory, &package, Some(above));
            for (i, &rows) in rows.iter().enumerate() {
                let mut next = 0;
                for slice in parts.iter().flat_map(|p| &p.slices).filter(|s| s.linear.0 as usize == i) {
                    prop_assert_eq!(slice.rows.start, next);
                    prop_assert!(!slice.rows.is_empty());
                    next = slice.rows.end;
                }
                prop_assert_eq!(next, rows);
            }
            let ceiling = above.max(solve_cost(width, width));
            prop_assert!(parts.len() == 1 || parts.iter().all(|p| p.cost <= ceiling));
            prop_assert!(parts.iter().enumerate().all(|(i, p)| p.id.index as usize == i));
        }
    }
}
