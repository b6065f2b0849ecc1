//! What a model of this configuration holds: its prunable parts, and every tensor of its checkpoint.

use obsdiff_proto::{Inventory, Linear, LinearId, Site, SiteId, Stream, Unit, UnitKind};

use super::FluxConfig;
use crate::Result;
use crate::checkpoint::Weights;
use crate::model::conditioning::TimeTextEmbed;
use crate::model::loading;

const QKV: [&str; 3] = ["attn.to_q", "attn.to_k", "attn.to_v"];
const ADDED_QKV: [&str; 3] = ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"];
/// What reads the normed tokens of a single-stream block.
const SINGLE_INPUTS: [&str; 4] = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"];

/// A site of a block: its stream, its width, and the linears that read it with their rows.
type SiteParts<'a> = (Stream, usize, &'a [(&'a str, usize)]);

impl FluxConfig {
    /// Units, sites and linears in the order in which a forward call reaches them, from the configuration alone. Blocks are counted
    /// through both kinds. No structures: a single-stream block's heads and neurons are columns of one linear, which
    /// [`obsdiff_proto::Structure`] cannot say.
    pub fn inventory(&self) -> Inventory {
        let parameters =
            self.shapes().iter().map(|(_, shape)| shape.iter().map(|n| *n as u64).product::<u64>()).sum();
        let mut inventory = Inventory {
            parameters,
            units: Vec::new(),
            sites: Vec::new(),
            linears: Vec::new(),
            structures: Vec::new(),
        };
        (0..self.num_layers).for_each(|block| self.add_double(block, &mut inventory));
        (0..self.num_single_layers).for_each(|block| self.add_single(block, &mut inventory));
        inventory
    }

    fn add_double(&self, block: usize, inventory: &mut Inventory) {
        let (w, hidden) = (self.width(), self.hidden_width());
        let [own, added] = [QKV, ADDED_QKV].map(|names| names.map(|name| (name, w)));
        let units: [(UnitKind, [SiteParts<'_>; 2]); 4] = [
            (UnitKind::AttentionInputs, [(Stream::Image, w, &own), (Stream::Text, w, &added)]),
            (
                UnitKind::AttentionOutputs,
                [(Stream::Image, w, &[("attn.to_out.0", w)]), (Stream::Text, w, &[("attn.to_add_out", w)])],
            ),
            (
                UnitKind::FfnInputs,
                [
                    (Stream::Image, w, &[("ff.net.0.proj", hidden)]),
                    (Stream::Text, w, &[("ff_context.net.0.proj", hidden)]),
                ],
            ),
            (
                UnitKind::FfnHidden,
                [
                    (Stream::Image, hidden, &[("ff.net.2", w)]),
                    (Stream::Text, hidden, &[("ff_context.net.2", w)]),
                ],
            ),
        ];
        let prefix = format!("transformer_blocks.{block}");
        for (kind, sites) in units {
            add_unit(inventory, block, kind, &prefix, &sites);
        }
    }

    fn add_single(&self, block: usize, inventory: &mut Inventory) {
        let (w, hidden) = (self.width(), self.hidden_width());
        let prefix = format!("single_transformer_blocks.{block}");
        let inputs = SINGLE_INPUTS.map(|name| (name, if name == "proj_mlp" { hidden } else { w }));
        let block = self.num_layers + block;
        add_unit(inventory, block, UnitKind::AttentionInputs, &prefix, &[(Stream::Joint, w, &inputs)]);
        let outputs: SiteParts<'_> = (Stream::Joint, w + hidden, &[("proj_out", w)]);
        add_unit(inventory, block, UnitKind::AttentionOutputs, &prefix, &[outputs]);
    }

    /// Every tensor that a checkpoint of this configuration holds, with its shape.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let (w, hidden) = (self.width(), self.hidden_width());
        let mut shapes = TimeTextEmbed::shapes(w, self.pooled_projection_dim, self.guidance_embeds);
        let mut linear = |name: String, rows: usize, n: usize| {
            shapes.push((format!("{name}.weight"), vec![rows, n]));
            shapes.push((format!("{name}.bias"), vec![rows]));
        };
        linear("x_embedder".to_owned(), w, self.in_channels);
        linear("context_embedder".to_owned(), w, self.joint_attention_dim);
        linear("norm_out.linear".to_owned(), 2 * w, w);
        linear("proj_out".to_owned(), self.output_features(), w);
        for block in 0..self.num_layers {
            let mut linear =
                |name: &str, rows, n| linear(format!("transformer_blocks.{block}.{name}"), rows, n);
            ["norm1.linear", "norm1_context.linear"].into_iter().for_each(|name| linear(name, 6 * w, w));
            QKV.into_iter().chain(ADDED_QKV).for_each(|name| linear(name, w, w));
            ["attn.to_out.0", "attn.to_add_out"].into_iter().for_each(|name| linear(name, w, w));
            for network in ["ff", "ff_context"] {
                linear(&format!("{network}.net.0.proj"), hidden, w);
                linear(&format!("{network}.net.2"), w, hidden);
            }
        }
        for block in 0..self.num_single_layers {
            let mut linear =
                |name: &str, rows, n| linear(format!("single_transformer_blocks.{block}.{name}"), rows, n);
            linear("norm.linear", 3 * w, w);
            QKV.into_iter().for_each(|name| linear(name, w, w));
            linear("proj_mlp", hidden, w);
            linear("proj_out", w, w + hidden);
        }
        let mut norms = |prefix: String, names: &[&str]| {
            let head = vec![self.attention_head_dim];
            shapes.extend(names.iter().map(|name| (format!("{prefix}.attn.{name}.weight"), head.clone())));
        };
        for block in 0..self.num_layers {
            let names = ["norm_q", "norm_k", "norm_added_q", "norm_added_k"];
            norms(format!("transformer_blocks.{block}"), &names);
        }
        (0..self.num_single_layers)
            .for_each(|block| norms(format!("single_transformer_blocks.{block}"), &["norm_q", "norm_k"]));
        shapes
    }

    /// Holds a checkpoint's headers against this configuration; no weight is read.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape or a type that is no float, or is one that the configuration does not ask for.
    pub fn check(&self, weights: &Weights) -> Result<()> {
        loading::check(self.shapes(), weights)
    }
}

fn add_unit(inventory: &mut Inventory, block: usize, kind: UnitKind, prefix: &str, sites: &[SiteParts<'_>]) {
    let mut ids = Vec::with_capacity(sites.len());
    for (stream, width, linears) in sites {
        let site = SiteId(inventory.sites.len() as u32);
        let first = inventory.linears.len() as u32;
        let listed =
            linears.iter().map(|(name, rows)| Linear { name: format!("{prefix}.{name}"), rows: *rows, site });
        inventory.linears.extend(listed);
        let linears: Vec<_> = (first..inventory.linears.len() as u32).map(LinearId).collect();
        let name = linears.first().map(|id| inventory.linear(*id).name.clone()).unwrap_or_default();
        inventory.sites.push(Site { name, width: *width, stream: *stream, linears });
        ids.push(site);
    }
    inventory.units.push(Unit { block: block as u32, kind, sites: ids });
}
