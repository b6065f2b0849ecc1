//! Whether an inventory makes sense in itself.

use super::{Inventory, Joined};
use crate::{Features, Structure};

impl Inventory {
    /// Checks that every id it names is one of its own, and that joined activations and structures lie within their sites and linears.
    ///
    /// # Errors
    /// The first thing that does not fit, as text that follows "the inventory".
    pub fn check(&self) -> Result<(), String> {
        let [streams, sites, linears] =
            [self.streams.len(), self.sites.len(), self.linears.len()].map(|count| count as u64);
        if let Some(site) = self.sites.iter().find(|site| u64::from(site.stream.0) >= streams) {
            return Err(format!("names stream {} of {streams}", site.stream));
        }
        let named = self.units.iter().flat_map(|unit| &unit.sites);
        let read = self.linears.iter().map(|linear| &linear.site);
        if let Some(site) = named.chain(read).find(|site| u64::from(site.0) >= sites) {
            return Err(format!("names site {site} of {sites}"));
        }
        let readers = self.sites.iter().flat_map(|site| &site.linears);
        let features = self.structures.iter().flat_map(|s| s.outputs.iter().chain(&s.inputs));
        let named = readers.chain(features.map(|features| &features.linear));
        if let Some(linear) = named.into_iter().find(|linear| u64::from(linear.0) >= linears) {
            return Err(format!("names linear {linear} of {linears}"));
        }
        if let Some(site) = self.sites.iter().find(|site| !covers(&site.joined, site.width)) {
            return Err(format!("has site {} with activations that do not add up to it", site.name));
        }
        match self.structures.iter().find_map(|structure| self.structure_problem(structure)) {
            Some(problem) => Err(problem),
            None => Ok(()),
        }
    }

    fn structure_problem(&self, structure: &Structure) -> Option<String> {
        let Structure { name, count, outputs, inputs, .. } = structure;
        let mut all = outputs.iter().chain(inputs);
        if *count == 0 || outputs.is_empty() || all.any(|features| features.size == 0) {
            return Some(format!("has nothing in structure {name}"));
        }
        let leaves = |features: &&Features, of: usize| {
            let size = features.size.checked_mul(*count);
            size.and_then(|size| features.offset.checked_add(size)).is_none_or(|end| end > of)
        };
        let width = |features: &&Features| self.site(self.linear(features.linear).site).width;
        let column = outputs.iter().find(|features| leaves(features, width(features)));
        let row = inputs.iter().find(|features| leaves(features, self.linear(features.linear).rows));
        let beyond = column.or(row)?;
        Some(format!("has structure {name} leave {}", self.linear(beyond.linear).name))
    }
}

/// Whether activations, one after another, are all of a site; a site that is a single one has none.
fn covers(joined: &[Joined], width: usize) -> bool {
    let next = joined.iter().try_fold(0, |start, part| {
        (part.columns.start == start && part.columns.end > start).then_some(part.columns.end)
    });
    joined.is_empty() || next == Some(width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Linear, LinearId, PartKind, Site, SiteId, Stream, StreamId, Unit};

    /// A single-stream block of 2 heads of 3 features and 4 neurons.
    fn single() -> Inventory {
        let linear =
            |name: &str, rows, site| Linear { name: name.to_owned(), rows, bias: true, site: SiteId(site) };
        let site = |width, linears: &[u32]| Site {
            name: format!("{width} wide"),
            width,
            stream: StreamId(0),
            joined: Vec::new(),
            linears: linears.iter().map(|id| LinearId(*id)).collect(),
        };
        let structure = |name: &str, kind, count, offset, size, input| Structure {
            name: name.to_owned(),
            block: 0,
            kind,
            count,
            outputs: vec![Features { linear: LinearId(2), offset, size }],
            inputs: vec![Features::whole(LinearId(input), size)],
        };
        let mut inventory = Inventory {
            streams: vec![Stream::new("joint", 1, true)],
            units: vec![Unit { block: 0, name: "outputs".to_owned(), sites: vec![SiteId(1)] }],
            sites: vec![site(6, &[0, 1]), site(10, &[2])],
            linears: vec![linear("values", 6, 0), linear("up", 4, 0), linear("out", 6, 1)],
            structures: vec![
                structure("attn", PartKind::Heads, 2, 0, 3, 0),
                structure("mlp", PartKind::Neurons, 4, 6, 1, 1),
            ],
            ..Inventory::default()
        };
        let joined = |name: &str, columns| Joined { name: name.to_owned(), columns };
        inventory.sites[1].joined = vec![joined("attention", 0..6), joined("mlp", 6..10)];
        inventory
    }

    #[test]
    fn what_does_not_fit_is_named() {
        assert_eq!(single().check(), Ok(()));
        let said = |change: &dyn Fn(&mut Inventory)| {
            let mut inventory = single();
            change(&mut inventory);
            inventory.check().unwrap_err()
        };
        assert_eq!(said(&|i| i.sites[0].stream = StreamId(1)), "names stream 1 of 1");
        assert_eq!(said(&|i| i.units[0].sites = vec![SiteId(2)]), "names site 2 of 2");
        assert_eq!(said(&|i| i.linears[0].site = SiteId(9)), "names site 9 of 2");
        assert_eq!(said(&|i| i.sites[0].linears.push(LinearId(3))), "names linear 3 of 3");
        assert_eq!(said(&|i| i.structures[0].inputs[0].linear = LinearId(7)), "names linear 7 of 3");
        for columns in [0..3, 6..10, 4..6] {
            let said = said(&|i| i.sites[1].joined[0].columns = columns.clone());
            assert_eq!(said, "has site 10 wide with activations that do not add up to it");
        }
        assert_eq!(said(&|i| i.structures[1].count = 0), "has nothing in structure mlp");
        assert_eq!(said(&|i| i.structures[1].outputs.clear()), "has nothing in structure mlp");
        assert_eq!(said(&|i| i.structures[0].inputs[0].size = 0), "has nothing in structure attn");
        assert_eq!(said(&|i| i.structures[0].inputs[0].offset = 1), "has structure attn leave values");
        assert_eq!(said(&|i| i.structures[1].outputs[0].offset = 7), "has structure mlp leave out");
        assert_eq!(said(&|i| i.structures[1].outputs[0].size = usize::MAX), "has structure mlp leave out");
    }

    #[test]
    fn structures_that_read_one_site_are_solved_together() {
        let mut inventory = single();
        let package = |linears: &[u32]| crate::Package {
            id: crate::PackageId(0),
            units: 0..1,
            sites: Vec::new(),
            linears: linears
                .iter()
                .map(|id| crate::LinearTarget {
                    linear: LinearId(*id),
                    target: crate::Target::Structured { ratio: None },
                })
                .collect(),
            survey: false,
        };
        let groups = |inventory: &Inventory, linears: &[u32]| -> Vec<Vec<u32>> {
            let groups = inventory.structure_groups(&package(linears));
            groups.into_iter().map(|ids| ids.into_iter().map(|id| id.0).collect()).collect()
        };
        assert_eq!(groups(&inventory, &[2]), [[0, 1]]);
        assert!(groups(&inventory, &[0]).is_empty());
        let ids = [crate::StructureId(0), crate::StructureId(1)];
        assert_eq!(inventory.outputs_of(&ids), [LinearId(2)]);
        // Two that are apart, until a third reads the sites of both.
        inventory.structures[0].outputs[0].linear = LinearId(0);
        assert_eq!(groups(&inventory, &[0, 2]), [[0], [1]]);
        let both = inventory.structures[0].outputs[0];
        let mut third = inventory.structures[1].clone();
        third.outputs.push(both);
        inventory.structures.push(third);
        assert_eq!(groups(&inventory, &[0, 2]), [[0, 1, 2]]);
    }

    #[test]
    fn a_streams_tokens_are_counted_from_both_kinds() {
        let tokens = |image_tokens, text| Stream::new("s", image_tokens, text).tokens(1024, 77);
        assert_eq!(
            [tokens(1, false), tokens(0, true), tokens(1, true), tokens(16, false)],
            [1024, 77, 1101, 64]
        );
    }
}
