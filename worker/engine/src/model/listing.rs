//! Writing a model's inventory block by block.

use std::collections::BTreeMap;

use obsdiff_proto::{
    Features, FixedLayer, Inventory, Joined, Linear, LinearId, PartKind, Site, SiteId, Stream, StreamId,
    Structure, Unit,
};

/// An inventory that is being written.
pub(crate) struct Listing<'a> {
    inventory: Inventory,
    by_name: BTreeMap<String, LinearId>,
    shapes: &'a [(String, Vec<usize>)],
}

/// A block of the model, under whose module path names are given.
pub(crate) struct BlockListing<'l, 'a> {
    listing: &'l mut Listing<'a>,
    block: u32,
    prefix: String,
}

/// A site of a block.
pub(crate) struct ListedSite<'a> {
    stream: StreamId,
    width: usize,
    joined: Vec<(&'a str, usize)>,
    linears: Vec<(&'a str, usize)>,
}

impl<'a> ListedSite<'a> {
    /// A single activation of this `width`, which linears of these names read, each with so many `rows`.
    pub(crate) fn new(stream: StreamId, width: usize, names: &[&'a str], rows: usize) -> Self {
        let linears = names.iter().map(|name| (*name, rows)).collect();
        Self { stream, width, joined: Vec::new(), linears }
    }

    /// Activations of these names and widths, joined in this order.
    pub(crate) fn joined(
        stream: StreamId,
        activations: &[(&'a str, usize)],
        name: &'a str,
        rows: usize,
    ) -> Self {
        let width = activations.iter().map(|(_, width)| width).sum();
        Self { joined: activations.to_vec(), ..Self::new(stream, width, &[name], rows) }
    }

    /// The same site, read by one more linear.
    pub(crate) fn and(mut self, name: &'a str, rows: usize) -> Self {
        self.linears.push((name, rows));
        self
    }
}

/// A structure of a block.
pub(crate) struct ListedStructure<'a> {
    pub(crate) module: &'a str,
    pub(crate) kind: PartKind,
    /// Features of a part.
    pub(crate) size: usize,
    pub(crate) count: usize,
    /// The linears that read the parts, with the column where these begin. Names that the block does not have are left out.
    pub(crate) outputs: &'a [(&'a str, usize)],
    /// The linears that make the parts, from their first row on; names as before.
    pub(crate) inputs: &'a [&'a str],
}

impl<'a> Listing<'a> {
    /// Nothing so far of a model with these streams, whose checkpoint has tensors of these names and `shapes`.
    pub(crate) fn new(streams: &[Stream], shapes: &'a [(String, Vec<usize>)]) -> Self {
        let inventory = Inventory { streams: streams.to_vec(), ..Inventory::default() };
        Self { inventory, by_name: BTreeMap::new(), shapes }
    }

    /// The block of this index in execution order, whose module path is `prefix`.
    pub(crate) fn block(&mut self, block: usize, prefix: String) -> BlockListing<'_, 'a> {
        BlockListing { listing: self, block: block as u32, prefix }
    }

    /// The inventory, with every tensor counted that is no linear's among the layers that are never pruned.
    pub(crate) fn finish(mut self) -> Inventory {
        let volume = |shape: &[usize]| shape.iter().map(|n| *n as u64).product::<u64>();
        self.inventory.parameters = self.shapes.iter().map(|(_, shape)| volume(shape)).sum();
        let mut places = BTreeMap::new();
        for (tensor, shape) in self.shapes {
            let name = tensor.rsplit_once('.').map_or(tensor.as_str(), |(module, _)| module);
            if self.by_name.contains_key(name) {
                continue;
            }
            let fixed = &mut self.inventory.fixed;
            let place = *places.entry(name).or_insert(fixed.len());
            match fixed.get_mut(place) {
                Some(layer) => layer.parameters += volume(shape),
                None => fixed.push(FixedLayer { name: name.to_owned(), parameters: volume(shape) }),
            }
        }
        self.inventory
    }
}

impl BlockListing<'_, '_> {
    fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.prefix)
    }

    /// Adds a unit of the sites that the block has.
    pub(crate) fn unit<'s>(&mut self, name: &str, sites: impl IntoIterator<Item = Option<ListedSite<'s>>>) {
        let sites = sites.into_iter().flatten().map(|site| self.site(&site)).collect();
        self.listing.inventory.units.push(Unit { block: self.block, name: name.to_owned(), sites });
    }

    fn site(&mut self, site: &ListedSite<'_>) -> SiteId {
        let id = SiteId(self.listing.inventory.sites.len() as u32);
        let linears: Vec<LinearId> =
            site.linears.iter().map(|(name, rows)| self.linear(name, *rows, id)).collect();
        let joined = site.joined.iter().scan(0, |start, (name, width)| {
            let columns = *start..*start + width;
            *start = columns.end;
            Some(Joined { name: (*name).to_owned(), columns })
        });
        let (width, joined) = (site.width, joined.collect());
        let name = site.linears.first().map(|(name, _)| self.path(name)).unwrap_or_default();
        self.listing.inventory.sites.push(Site { name, width, stream: site.stream, joined, linears });
        id
    }

    fn linear(&mut self, name: &str, rows: usize, site: SiteId) -> LinearId {
        let name = self.path(name);
        let listing = &mut *self.listing;
        let id = LinearId(listing.inventory.linears.len() as u32);
        let bias_name = format!("{name}.bias");
        let bias = listing.shapes.iter().any(|(tensor, _)| *tensor == bias_name);
        listing.inventory.linears.push(Linear { name: name.clone(), rows, bias, site });
        listing.by_name.insert(name, id);
        id
    }

    /// Adds a structure, behind the units that hold its linears; nothing where it has no parts.
    pub(crate) fn structure(&mut self, listed: &ListedStructure<'_>) {
        let ListedStructure { module, kind, size, count, outputs, inputs } = *listed;
        if count == 0 {
            return;
        }
        let find = |name: &str, offset| {
            let linear = *self.listing.by_name.get(&self.path(name))?;
            Some(Features { linear, offset, size })
        };
        let structure = Structure {
            name: self.path(module),
            block: self.block,
            kind,
            count,
            outputs: outputs.iter().filter_map(|(name, offset)| find(name, *offset)).collect(),
            inputs: inputs.iter().filter_map(|name| find(name, 0)).collect(),
        };
        self.listing.inventory.structures.push(structure);
    }
}
