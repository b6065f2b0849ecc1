//! What a model can have pruned, as it describes itself from its configuration alone.

use serde::{Deserialize, Serialize};

use crate::{LinearId, Package, SiteId, Structure, StructureId};

/// The prunable parts of a transformer: units in execution order, their sites, and the linears that read each site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Parameters of the whole transformer, pruned or not.
    pub parameters: u64,
    /// Units in the order in which a forward call reaches them.
    pub units: Vec<Unit>,
    /// Sites; a [`SiteId`] is an index into this list.
    pub sites: Vec<Site>,
    /// Linears; a [`LinearId`] is an index into this list.
    pub linears: Vec<Linear>,
    /// What can go as a whole; a [`StructureId`] is an index into this list.
    #[serde(default)]
    pub structures: Vec<Structure>,
}

/// Sites whose inputs do not depend on each other's weights within a block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    /// Index of the transformer block, in execution order.
    pub block: u32,
    /// Which of a block's units this is.
    pub kind: UnitKind,
    /// The unit's sites, of the image and the text stream together.
    pub sites: Vec<SiteId>,
}

/// The four units of a transformer block, of which a single-stream block has the first two: its feed-forward network works beside its
/// attention, on the same inputs, and both are read by one output projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UnitKind {
    /// Normed inputs of the query, key and value projections.
    AttentionInputs,
    /// Attention outputs, read by the output projections.
    AttentionOutputs,
    /// Normed inputs of the feed-forward networks.
    FfnInputs,
    /// Hidden activations of the feed-forward networks.
    FfnHidden,
}

/// Which token stream of a joint transformer an activation belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// Latent patches.
    Image,
    /// Text tokens ("context" in diffusers).
    Text,
    /// Text and image tokens as one sequence, in single-stream blocks.
    Joint,
}

/// One activation that one or more linears read; it has exactly one Gram.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Site {
    /// The diffusers module path of the site's first linear.
    pub name: String,
    /// Features of the activation: n, the width of its n x n Gram.
    pub width: usize,
    /// The token stream whose rows reach the site.
    pub stream: Stream,
    /// The linears that read it, in module order.
    pub linears: Vec<LinearId>,
}

/// One `nn.Linear` that may be pruned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Linear {
    /// The diffusers module path, for example `transformer_blocks.3.attn.to_q`.
    pub name: String,
    /// Output features; the weight is `rows x width` of its site.
    pub rows: usize,
    /// The site it reads.
    pub site: SiteId,
}

impl Inventory {
    /// The site with this id.
    ///
    /// # Panics
    /// When the id is not of this inventory, as indexing does.
    pub fn site(&self, id: SiteId) -> &Site {
        &self.sites[id.0 as usize]
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
        let named = |linear: &LinearId| package.linears.iter().any(|target| target.linear == *linear);
        self.structure_ids().filter(move |id| self.structure(*id).outputs.first().is_some_and(named))
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
