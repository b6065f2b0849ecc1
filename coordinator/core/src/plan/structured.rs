//! The targets of structured pruning: rules decide by the name of the first linear that reads a structure.

use std::collections::{BTreeMap, BTreeSet};

use obsdiff_proto::{Inventory, Linear, LinearId, Structure, Target, Targets};

/// The linears by whose names rules decide: the first of those that read a structure.
pub(super) fn leaders(inventory: &Inventory) -> impl Iterator<Item = &Linear> {
    let mut seen = BTreeSet::new();
    let leaders = inventory.structures.iter().filter_map(Structure::leader);
    leaders.filter(move |id| seen.insert(*id)).map(|id| inventory.linear(id))
}

/// The target of every linear that loses columns. The first and the last block keep all, unless a rule sets something else.
pub(super) fn targets(inventory: &Inventory, targets: &Targets) -> BTreeMap<LinearId, Target> {
    let last = inventory.structures.iter().map(|s| s.block).max().unwrap_or(0);
    let target = |structure: &Structure| {
        let by_rule = targets.by_rule(&inventory.linear(structure.leader()?).name);
        let ends = structure.block == 0 || structure.block == last;
        by_rule.unwrap_or((!ends).then_some(targets.otherwise()))
    };
    let of = |structure: &Structure| {
        let target = target(structure);
        structure.outputs.iter().filter_map(move |output| Some((output.linear, target?))).collect::<Vec<_>>()
    };
    inventory.structures.iter().flat_map(of).collect()
}

/// Whether some structure stays whole for no other reason than that it lies in the first or the last block.
pub(super) fn keeps_ends(inventory: &Inventory, targets: &Targets) -> bool {
    leaders(inventory).any(|linear| targets.by_rule(&linear.name).is_none())
}
