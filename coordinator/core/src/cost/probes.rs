//! What the probes of a survey cost. A worker takes the dense model's trajectory to the last point at which velocities are compared, and
//! keeps a state at each point: that in front of the block that its last probe changed. A probe then makes the blocks from its own on.

use std::collections::BTreeMap;

use obsdiff_proto::{Inventory, LinearId, Package, SiteId, Unit};

use super::Workload;
use crate::Part;

/// Counts the forward calls of probes.
pub(super) struct ProbeCost<'a> {
    inventory: &'a Inventory,
    workload: &'a Workload,
    /// The block of each site.
    blocks: BTreeMap<SiteId, usize>,
}

impl<'a> ProbeCost<'a> {
    pub(super) fn new(inventory: &'a Inventory, workload: &'a Workload) -> Self {
        let sites = |unit: &'a Unit| unit.sites.iter().map(|site| (*site, unit.block as usize));
        Self { inventory, workload, blocks: inventory.units.iter().flat_map(sites).collect() }
    }

    /// Operations of one worker's probes, each of which changes some linears, made in this order.
    pub(super) fn flops(&self, probes: impl IntoIterator<Item = Vec<LinearId>>) -> f64 {
        let flops = &self.workload.forward;
        let blocks =
            |from: usize, to: usize| flops.blocks.get(from..to).map_or(0.0, |blocks| blocks.iter().sum());
        // How many blocks the states have passed; none while there is no trajectory.
        let mut passed = None;
        let mut calls = 0.0;
        for probe in probes {
            let first = probe.into_iter().map(|linear| self.block_of(linear)).min().unwrap_or(0);
            let moved: f64 = match passed {
                Some(passed) if passed > first => flops.start + blocks(0, first),
                passed => blocks(passed.unwrap_or(0), first),
            };
            let probed: f64 = blocks(first, flops.blocks.len());
            calls += moved + self.workload.survey.calls * (probed + flops.finish);
            passed = Some(first);
        }
        let trajectory = passed.map_or(0.0, |_| self.workload.survey.trajectory * flops.total());
        trajectory + calls * self.workload.survey.passes
    }

    /// What the probes of a part of this package change, one after another: each slice, or each structure.
    pub(super) fn of_part(&self, package: &Package, part: &Part) -> Vec<Vec<LinearId>> {
        if !package.survey || package.sites.is_empty() {
            return Vec::new();
        }
        if !package.is_structured() {
            return part.slices.iter().map(|slice| vec![slice.linear]).collect();
        }
        let inventory = self.inventory;
        let of_part = |linear: LinearId| part.slices.iter().any(|slice| slice.linear == linear);
        let structures = inventory.structures_of(package);
        let led = structures.filter(|id| inventory.structure(*id).leader().is_some_and(of_part));
        led.map(|id| inventory.outputs_of(&[id])).collect()
    }

    fn block_of(&self, linear: LinearId) -> usize {
        self.blocks.get(&self.inventory.linear(linear).site).copied().unwrap_or(0)
    }
}
