//! What an export leaves out: the heads and neurons that no linear reads.

use std::collections::BTreeMap;

use obsdiff_proto::{Features, Inventory, LinearId, Structure};

use crate::export::KeptIndices;

/// The parts that stay of each structure, ascending: those that some linear reads with a weight that is not zero. At least one part, the
/// first, stays. Where neurons are kept in multiples of `align`, the first unread neurons fill up the last multiple. `weight` gives a
/// linear's pruned weight, row after row.
///
/// # Errors
/// Those of `weight`.
pub fn kept_parts<E>(
    inventory: &Inventory,
    align: u32,
    weight: &mut dyn FnMut(LinearId) -> Result<Vec<f32>, E>,
) -> Result<Vec<Vec<usize>>, E> {
    let mut of = |structure: &Structure| {
        let mut read = vec![false; structure.count];
        for output in &structure.outputs {
            let width = inventory.site(inventory.linear(output.linear).site).width;
            for row in weight(output.linear)?.chunks_exact(width) {
                for (read, part) in
                    read.iter_mut().zip(row[output.all(structure.count)].chunks_exact(output.size))
                {
                    *read |= part.iter().any(|w| *w != 0.0);
                }
            }
        }
        let kept = read.iter().filter(|read| **read).count().max(1);
        let missing = kept.next_multiple_of(structure.unit(align)).min(structure.count) - kept;
        let unread = usize::from(!read.contains(&true)) + missing;
        read.iter_mut().filter(|read| !**read).take(unread).for_each(|read| *read = true);
        Ok((0..structure.count).filter(|part| read[*part]).collect())
    };
    inventory.structures.iter().map(&mut of).collect()
}

/// The rows or columns that stay of each tensor, by its name in a checkpoint, when the parts `kept` stay of each structure. Tensors that
/// stay whole are not among them.
pub fn selections(inventory: &Inventory, kept: &[Vec<usize>]) -> BTreeMap<String, KeptIndices> {
    // Several structures may take from one linear.
    let (mut rows, mut columns) = (BTreeMap::<LinearId, Vec<usize>>::new(), BTreeMap::<_, Vec<_>>::new());
    for (structure, kept) in inventory.structures.iter().zip(kept).filter(|(s, kept)| kept.len() < s.count) {
        let parts = (0..structure.count).filter(|part| kept.binary_search(part).is_err());
        let gone = |features: &Features| parts.clone().flat_map(|part| features.of(part)).collect::<Vec<_>>();
        for input in &structure.inputs {
            rows.entry(input.linear).or_default().extend(gone(input));
        }
        for output in &structure.outputs {
            columns.entry(output.linear).or_default().extend(gone(output));
        }
    }
    let mut selections = BTreeMap::new();
    for (linear, gone) in rows {
        let linear = inventory.linear(linear);
        let left = all_but(linear.rows, gone);
        if linear.bias {
            selections.insert(format!("{}.bias", linear.name), KeptIndices::Rows(left.clone()));
        }
        selections.insert(format!("{}.weight", linear.name), KeptIndices::Rows(left));
    }
    for (linear, gone) in columns {
        let linear = inventory.linear(linear);
        let left = all_but(inventory.site(linear.site).width, gone);
        selections.insert(format!("{}.weight", linear.name), KeptIndices::Columns(left));
    }
    selections
}

/// The numbers below `count` that are not among `gone`, ascending.
fn all_but(count: usize, mut gone: Vec<usize>) -> Vec<usize> {
    gone.sort_unstable();
    (0..count).filter(|feature| gone.binary_search(feature).is_err()).collect()
}

#[cfg(test)]
mod tests {
    use obsdiff_proto::{Linear, PartKind, Site, SiteId, Stream, StreamId, Structure};

    use super::*;

    /// Two heads of two features and three gated neurons, read by one linear: `gates` makes each neuron twice, `heads` has no bias.
    fn inventory() -> Inventory {
        let site = |width, linears: &[u32]| Site {
            name: String::new(),
            width,
            stream: StreamId(0),
            joined: Vec::new(),
            linears: linears.iter().map(|id| LinearId(*id)).collect(),
        };
        let linear =
            |name: &str, rows, bias, site| Linear { name: name.to_owned(), rows, bias, site: SiteId(site) };
        let features = |linear, offset, size| Features { linear: LinearId(linear), offset, size };
        let structure = |kind, count, output, inputs: &[Features]| Structure {
            name: String::new(),
            block: 0,
            kind,
            count,
            outputs: vec![output],
            inputs: inputs.to_vec(),
        };
        Inventory {
            streams: vec![Stream::new("joint", 1, true)],
            sites: vec![site(2, &[0, 1]), site(7, &[2])],
            linears: vec![
                linear("heads", 4, false, 0),
                linear("gates", 6, true, 0),
                linear("out", 2, true, 1),
            ],
            structures: vec![
                structure(PartKind::Heads, 2, features(2, 0, 2), &[features(0, 0, 2)]),
                structure(PartKind::Neurons, 3, features(2, 4, 1), &[features(1, 0, 1), features(1, 3, 1)]),
            ],
            ..Inventory::default()
        }
    }

    #[test]
    fn structures_that_one_linear_reads_shrink_it_together() {
        let inventory = inventory();
        assert_eq!(inventory.check(), Ok(()));
        let weight = |of: &[f32], align: u32| {
            let weight = of.to_vec();
            kept_parts(&inventory, align, &mut move |id| {
                assert_eq!(id, LinearId(2));
                Ok::<_, ()>(weight.clone())
            })
            .unwrap()
        };
        let kept = weight(&[0., 0., 0., 1., 0., 2., 0., 0., 0., 0., 0., 0., 0., 3.], 1);
        assert_eq!(kept, [vec![1], vec![1, 2]]);
        let selections = selections(&inventory, &kept);
        let rows = |rows: &[usize]| KeptIndices::Rows(rows.to_vec());
        let expected = [
            ("gates.bias", rows(&[1, 2, 4, 5])),
            ("gates.weight", rows(&[1, 2, 4, 5])),
            ("heads.weight", rows(&[2, 3])),
            ("out.weight", KeptIndices::Columns(vec![2, 3, 5, 6])),
        ];
        assert_eq!(selections, expected.map(|(name, kept)| (name.to_owned(), kept)).into());
        // Nobody reads any part: the first one stays.
        assert_eq!(weight(&[0.0; 14], 1), [[0], [0]]);
        // The second neuron is read: the first one fills up a pair, and all three are what is there.
        let second = [0., 0., 0., 1., 0., 2., 0., 0., 0., 0., 0., 0., 0., 0.];
        assert_eq!(weight(&second, 2), [vec![1], vec![0, 1]]);
        assert_eq!(weight(&second, 8), [vec![1], vec![0, 1, 2]]);
    }
}
