//! Which sites are solved in parts. Only the plan decides that, never the number of workers, because rows that are solved together
//! compete for zeros.

use std::collections::{BTreeMap, BTreeSet};

use obsdiff_proto::{Inventory, LinearId, Package, PackageId, SiteId, StructureId};

use crate::assignment::SolveCost;
use crate::{Part, PartId, Slice};

/// The parts in which a package is solved, by site and row. A site whose solving costs at most `above` stays whole. A larger one is
/// cut into even chunks of rows, so that a part costs at most `above`; but a part keeps so many rows that they cost no less than the
/// factorisation, which every part repeats: as many as cost that much.
///
/// A structure whose heads or neurons go is a part, whatever it costs: its streams are scored together. Structures that read one site
/// are a part together.
///
/// Package and inventory must fit each other ([`crate::Job::validate`]).
pub fn parts(inventory: &Inventory, package: &Package, above: Option<u64>, solving: SolveCost) -> Vec<Part> {
    if package.is_structured() {
        return structures(inventory, package);
    }
    let mut by_site: BTreeMap<SiteId, Vec<LinearId>> = BTreeMap::new();
    for target in &package.linears {
        by_site.entry(inventory.linear(target.linear).site).or_default().push(target.linear);
    }
    let of_site =
        |(site, linears): (_, Vec<_>)| site_parts(inventory, package.id, site, &linears, above, solving);
    by_site.into_iter().flat_map(of_site).collect()
}

fn site_parts(
    inventory: &Inventory,
    package: PackageId,
    site: SiteId,
    linears: &[LinearId],
    above: Option<u64>,
    solving: SolveCost,
) -> Vec<Part> {
    let width = inventory.site(site).width;
    let total: usize = linears.iter().map(|&l| inventory.linear(l).rows).sum();
    let most = match above {
        Some(above) if solving.of_rows(width, total) > above => rows_within(width, above, solving),
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
    let part = |(index, (rows, slices))| Part {
        id: PartId { package, site, index },
        sites: vec![site],
        slices,
        cost: solving.of_rows(width, rows),
    };
    (0u32..).zip(parts).map(part).collect()
}

fn structures(inventory: &Inventory, package: &Package) -> Vec<Part> {
    let part = |group: Vec<StructureId>| {
        let outputs = inventory.outputs_of(&group);
        let first = outputs.first()?;
        let whole = |linear: &LinearId| Slice { linear: *linear, rows: 0..inventory.linear(*linear).rows };
        let cost = |linear: &LinearId| {
            let linear = inventory.linear(*linear);
            SolveCost::sweep(0).of_rows(inventory.site(linear.site).width, linear.rows)
        };
        let sites: BTreeSet<_> = outputs.iter().map(|linear| inventory.linear(*linear).site).collect();
        Some(Part {
            id: PartId { package: package.id, site: inventory.linear(*first).site, index: 0 },
            sites: sites.into_iter().collect(),
            slices: outputs.iter().map(whole).collect(),
            cost: outputs.iter().map(cost).fold(0, u64::saturating_add),
        })
    };
    inventory.structure_groups(package).into_iter().filter_map(part).collect()
}

/// The most rows whose solving costs no more than `above`, but at least so many that they cost what the factorisation does.
fn rows_within(width: usize, above: u64, solving: SolveCost) -> usize {
    let n = (width as u64).max(1);
    let row = n.saturating_mul(n).saturating_mul(solving.row());
    let rows = above.saturating_sub(solving.of_rows(width, 0)) / row;
    usize::try_from(rows.max(solving.rows_of_a_site(width))).unwrap_or(usize::MAX)
}

/// Cuts `0..rows` into the fewest chunks of at most `most` rows, even to within one row.
fn even_chunks(rows: usize, most: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let count = rows.div_ceil(most.max(1));
    (0..count).map(move |i| rows * i / count..rows * (i + 1) / count)
}

#[cfg(test)]
mod tests {
    use obsdiff_proto::{Linear, LinearTarget, Site, StreamId, Target};
    use proptest::prelude::*;

    use super::*;

    fn site_of(width: usize, rows: &[usize]) -> (Inventory, Package) {
        let ids: Vec<_> = (0..rows.len() as u32).map(LinearId).collect();
        let linear =
            |(i, &rows): (usize, &usize)| Linear { name: format!("l{i}"), rows, bias: true, site: SiteId(0) };
        let site = Site {
            name: "l0".to_owned(),
            width,
            stream: StreamId(0),
            joined: Vec::new(),
            linears: ids.clone(),
        };
        let linears = rows.iter().enumerate().map(linear).collect();
        let inventory = Inventory { sites: vec![site], linears, ..Inventory::default() };
        let target = |linear| LinearTarget { linear, target: Target::NToM { n: 2, m: 4 } };
        let linears = ids.into_iter().map(target).collect();
        (inventory, Package { id: PackageId(0), units: 0..0, sites: vec![SiteId(0)], linears, survey: false })
    }

    #[test]
    fn a_site_within_the_limit_stays_whole() {
        let (inventory, package) = site_of(8, &[8, 8, 8]);
        for refine in [0, 5] {
            let solving = SolveCost::sweep(refine);
            let cost = solving.of_rows(8, 24);
            for above in [None, Some(cost)] {
                let parts = parts(&inventory, &package, above, solving);
                assert_eq!(parts.len(), 1);
                assert_eq!((parts[0].slices.len(), parts[0].cost), (3, cost));
            }
            assert!(parts(&inventory, &package, Some(cost - 1), solving).len() > 1);
        }
    }

    #[test]
    fn a_part_of_refined_rows_may_be_smaller() {
        let (inventory, package) = site_of(26, &[52]);
        let rows =
            |refine| parts(&inventory, &package, Some(0), SolveCost::sweep(refine))[0].slices[0].rows.len();
        // 5 steps make a row cost 13 times as much.
        assert_eq!((rows(0), rows(5)), (26, 2));
    }

    proptest! {
        #[test]
        fn every_row_stands_in_exactly_one_part(
            width in 1usize..40,
            rows in prop::collection::vec(1usize..200, 1..5),
            above in 0u64..2_000_000,
            refine in 0u32..8,
        ) {
            let (inventory, package) = site_of(width, &rows);
            let solving = SolveCost::sweep(refine);
            let parts = parts(&inventory, &package, Some(above), solving);
            for (i, &rows) in rows.iter().enumerate() {
                let mut next = 0;
                for slice in parts.iter().flat_map(|p| &p.slices).filter(|s| s.linear.0 as usize == i) {
                    prop_assert_eq!(slice.rows.start, next);
                    prop_assert!(!slice.rows.is_empty());
                    next = slice.rows.end;
                }
                prop_assert_eq!(next, rows);
            }
            let least = width.div_ceil(solving.row() as usize);
            let ceiling = above.max(solving.of_rows(width, least));
            prop_assert!(parts.len() == 1 || parts.iter().all(|p| p.cost <= ceiling));
            prop_assert!(parts.iter().enumerate().all(|(i, p)| p.id.index as usize == i));
        }
    }
}
