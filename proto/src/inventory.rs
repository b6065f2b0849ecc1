//! The inventory: a model's description of what can be pruned in it, made from its configuration alone.

mod check;

use std::collections::BTreeSet;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{LinearId, Package, SiteId, StreamId, Structure, StructureId};

/// The prunable parts of a model: units in execution order, their sites, and the linears that read each site; and what else it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Parameters of the whole model, pruned or not.
    pub parameters: u64,
    /// The token streams that reach sites; a [`StreamId`] is an index into this list.
    pub streams: Vec<Stream>,
    /// Units in the order in which a forward call reaches them.
    pub units: Vec<Unit>,
    /// Sites; a [`SiteId`] is an index into this list.
    pub sites: Vec<Site>,
    /// Linears; a [`LinearId`] is an index into this list.
    pub linears: Vec<Linear>,
    /// What can go as a whole; a [`StructureId`] is an index into this list.
    pub structures: Vec<Structure>,
    /// Layers that are never pruned.
    pub fixed: Vec<FixedLayer>,
}

/// Sites whose inputs do not depend on each other's weights within a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Index of the block, in execution order.
    pub block: u32,
    /// What the architecture calls this unit among those of its block, for example `attention-inputs`.
    pub name: String,
    /// The unit's sites, of all streams together.
    pub sites: Vec<SiteId>,
}

/// Tokens that pass through a model together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// What the architecture calls it, for example `image`.
    pub name: String,
    /// Image tokens, as the model counts them for a size of picture, that one token of the stream stands for: 1 where all of them are
    /// in it, more where the model works on a smaller grid, 0 where none is in it.
    pub image_tokens: u32,
    /// Whether the text tokens are in it.
    pub text: bool,
}

/// One activation that one or more linears read; it has exactly one Gram.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// The diffusers module path of the site's first linear.
    pub name: String,
    /// Features of the activation: n, the width of its n x n Gram.
    pub width: usize,
    /// The token stream whose rows reach the site.
    pub stream: StreamId,
    /// The activations that are joined in it, in the order of their columns; empty where it is a single one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joined: Vec<Joined>,
    /// The linears that read it, in module order.
    pub linears: Vec<LinearId>,
}

/// One of the activations that are joined in a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    /// What the architecture calls it, for example `attention`.
    pub name: String,
    /// Its columns of the site.
    pub columns: Range<usize>,
}

/// One `nn.Linear` that may be pruned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linear {
    /// The diffusers module path, for example `transformer_blocks.3.attn.to_q`.
    pub name: String,
    /// Output features; the weight is `rows x width` of its site.
    pub rows: usize,
    /// Whether it adds a bias, of `rows` numbers.
    pub bias: bool,
    /// The site it reads.
    pub site: SiteId,
}

/// A layer that is never pruned: an embedder, a modulation, a norm, a convolution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FixedLayer {
    /// The diffusers module path, for example `transformer_blocks.3.norm1.linear`.
    pub name: String,
    /// Its parameters.
    pub parameters: u64,
}

impl Stream {
    /// A stream by its name; see the fields for the other two.
    pub fn new(name: &str, image_tokens: u32, text: bool) -> Self {
        Self { name: name.to_owned(), image_tokens, text }
    }

    /// Its tokens in one forward call on one picture with these numbers of `image` and `text` tokens.
    pub fn tokens(&self, image: u64, text: u64) -> u64 {
        let image = image.checked_div(u64::from(self.image_tokens)).unwrap_or(0);
        image.saturating_add(if self.text { text } else { 0 })
    }
}

impl Inventory {
    /// The site with this id.
    ///
    /// # Panics
    /// When the id is not of this inventory, as indexing does.
    pub fn site(&self, id: SiteId) -> &Site {
        &self.sites[id.0 as usize]
    }

    /// The stream with this id.
    ///
    /// # Panics
    /// When the id is not of this inventory, as indexing does.
    pub fn stream(&self, id: StreamId) -> &Stream {
        &self.streams[id.0 as usize]
    }

    /// The linear with this id.
    ///
    /// # Panics
    /// When the id is not of this inventory, as indexing does.
    pub fn linear(&self, id: LinearId) -> &Linear {
        &self.linears[id.0 as usize]
    }

    /// The structure with this id.
    ///
    /// # Panics
    /// When the id is not of this inventory, as indexing does.
    pub fn structure(&self, id: StructureId) -> &Structure {
        &self.structures[id.0 as usize]
    }

    /// Every structure's id, in order.
    pub fn structure_ids(&self) -> impl Iterator<Item = StructureId> + use<> {
        (0..self.structures.len() as u32).map(StructureId)
    }

    /// The structures whose heads or neurons a package prunes, in order: those whose outputs it names.
    pub fn structures_of(&self, package: &Package) -> impl Iterator<Item = StructureId> {
        let named = |linear: LinearId| package.linears.iter().any(|target| target.linear == linear);
        self.structure_ids().filter(move |id| self.structure(*id).leader().is_some_and(named))
    }

    /// The same structures in groups, each to be solved as one piece: those of a group read common sites, so that what goes from one
    /// changes the weights that the others are scored by. Groups are ordered by their first structure.
    pub fn structure_groups(&self, package: &Package) -> Vec<Vec<StructureId>> {
        let mut groups: Vec<(BTreeSet<SiteId>, Vec<StructureId>)> = Vec::new();
        for id in self.structures_of(package) {
            let mut sites = self.sites_of(id);
            let mut ids = Vec::new();
            groups.retain_mut(|(others, members)| {
                let apart = sites.is_disjoint(others);
                if !apart {
                    sites.append(others);
                    ids.append(members);
                }
                apart
            });
            ids.push(id);
            groups.push((sites, ids));
        }
        let mut groups: Vec<_> = groups.into_iter().map(|(_, ids)| ids).collect();
        groups.iter_mut().for_each(|ids| ids.sort_unstable());
        groups.sort_unstable();
        groups
    }

    /// The sites that a structure's outputs read.
    pub fn sites_of(&self, id: StructureId) -> BTreeSet<SiteId> {
        self.structure(id).outputs.iter().map(|output| self.linear(output.linear).site).collect()
    }

    /// The linears that read a group of structures, without repetition: those of the first, then what the next ones add.
    pub fn outputs_of(&self, group: &[StructureId]) -> Vec<LinearId> {
        let mut linears = Vec::new();
        for output in group.iter().flat_map(|id| &self.structure(*id).outputs) {
            if !linears.contains(&output.linear) {
                linears.push(output.linear);
            }
        }
        linears
    }

    /// Parameters of a linear, its bias counted.
    pub fn parameters_of(&self, linear: &Linear) -> u64 {
        let width = self.site(linear.site).width + usize::from(linear.bias);
        linear.rows as u64 * width as u64
    }

    /// Every site's id, in order.
    pub fn site_ids(&self) -> impl Iterator<Item = SiteId> + use<> {
        (0..self.sites.len() as u32).map(SiteId)
    }

    /// Every linear's id, in order.
    pub fn linear_ids(&self) -> impl Iterator<Item = LinearId> + use<> {
        (0..self.linears.len() as u32).map(LinearId)
    }
}
