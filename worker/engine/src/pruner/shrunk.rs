//! What an export leaves out: heads and neurons that nobody reads.

use std::collections::BTreeMap;

use obsdiff_proto::{Inventory, LinearId, Structure};

use crate::export::Kept;

/// The parts that are left of each structure of a model, ascending: those of which some reader has a weight that is not zero. Where
/// none is, the first part stays. `weight` gives a linear's pruned weight, row after row.
///
/// # Errors
/// Those of `weight`.
pub fn kept_parts<E>(
    inventory: &Inventory,
    weight: &mut dyn FnMut(LinearId) -> Result<Vec<f32>, E>,
) -> Result<Vec<Vec<usize>>, E> {
    let mut of = |structure: &Structure| {
        let mut read = vec![false; structure.count];
        for linear in &structure.outputs {
            for row in weight(*linear)?.chunks_exact(structure.size * structure.count) {
                for (read, part) in read.iter_mut().zip(row.chunks_exact(structure.size)) {
                    *read |= part.iter().any(|w| *w != 0.0);
                }
            }
        }
        if !read.contains(&true) {
            read[..1].fill(true);
        }
        Ok((0..structure.count).filter(|part| read[*part]).collect())
    };
    inventory.structures.iter().map(&mut of).collect()
}

/// What is left of each tensor, by its name in a checkpoint, when `kept` parts are left of each structure. Tensors that stay whole are
/// left out.
pub fn selections(inventory: &Inventory, kept: &[Vec<usize>]) -> BTreeMap<String, Kept> {
    let mut selections = BTreeMap::new();
    for (structure, kept) in inventory.structures.iter().zip(kept).filter(|(s, kept)| kept.len() < s.count) {
        let features: Vec<usize> =
            kept.iter().flat_map(|part| part * structure.size..(part + 1) * structure.size).collect();
        for linear in &structure.inputs {
            let name = &inventory.linear(*linear).name;
            selections.insert(format!("{name}.weight"), Kept::Rows(features.clone()));
            selections.insert(format!("{name}.bias"), Kept::Rows(features.clone()));
        }
        for linear in &structure.outputs {
            let name = &inventory.linear(*linear).name;
            selections.insert(format!("{name}.weight"), Kept::Columns(features.clone()));
        }
    }
    selections
}
