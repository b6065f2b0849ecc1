//! What of a forward call a probe makes: the blocks before the one that it changes are computed once for all probes.

use std::collections::BTreeMap;

use obsdiff_proto::{Inventory, LinearId, SiteId};

use super::Tokens;

/// By site, the share of a forward call that is left from its block on.
pub(super) struct ProbeShares<'a> {
    inventory: &'a Inventory,
    left: BTreeMap<SiteId, f64>,
}

impl<'a> ProbeShares<'a> {
    /// Blocks count by the products of the linears that an inventory names: they take nearly all of a forward call.
    pub(super) fn new(inventory: &'a Inventory, tokens: Tokens) -> Self {
        let work = |site: &SiteId| {
            let site = inventory.site(*site);
            let rows: usize = site.linears.iter().map(|linear| inventory.linear(*linear).rows).sum();
            tokens.at(site, inventory) as f64 * rows as f64 * site.width as f64
        };
        let mut blocks = BTreeMap::<u32, f64>::new();
        for unit in &inventory.units {
            *blocks.entry(unit.block).or_default() += unit.sites.iter().map(work).sum::<f64>();
        }
        let whole: f64 = blocks.values().sum();
        let from = |block: u32| blocks.range(block..).map(|(_, work)| work).sum::<f64>() / whole;
        let left = inventory.units.iter().flat_map(|unit| {
            let share = from(unit.block);
            unit.sites.iter().map(move |site| (*site, share))
        });
        Self { inventory, left: left.collect() }
    }

    /// That of a probe that changes these linears: from the first of their blocks on.
    pub(super) fn of(&self, linears: impl IntoIterator<Item = LinearId>) -> f64 {
        let share = |linear| self.left.get(&self.inventory.linear(linear).site).copied().unwrap_or(1.0);
        linears.into_iter().map(share).fold(0.0, f64::max)
    }
}
