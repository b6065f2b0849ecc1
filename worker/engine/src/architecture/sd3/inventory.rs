//! What a model of this configuration holds: its prunable parts, and every tensor of its checkpoint.

use std::collections::BTreeMap;

use obsdiff_proto::{Inventory, Linear, LinearId, Site, SiteId, Stream, Structure, Unit, UnitKind};

use super::Sd3Config;
use crate::Result;
use crate::checkpoint::Weights;
use crate::model::conditioning::TimeTextEmbed;
use crate::model::loading;

const QKV: [&str; 3] = ["attn.to_q", "attn.to_k", "attn.to_v"];
const ADDED_QKV: [&str; 3] = ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"];
const OWN_QKV: [&str; 3] = ["attn2.to_q", "attn2.to_k", "attn2.to_v"];

impl Sd3Config {
    /// Units, sites and linears in the order in which a forward call reaches them, from the configuration alone.
    pub fn inventory(&self) -> Inventory {
        let parameters = self
            .shapes()
            .iter()
            .filter(|(name, _)| name != "pos_embed.pos_embed")
            .map(|(_, s)| volume(s))
            .sum();
        let mut inventory = Inventory {
            parameters,
            units: Vec::new(),
            sites: Vec::new(),
            linears: Vec::new(),
            structures: Vec::new(),
        };
        for block in 0..self.num_layers {
            self.add_block(block, &mut inventory);
        }
        inventory
    }

    fn add_block(&self, block: usize, inventory: &mut Inventory) {
        let w = self.width();
        let [attended, own] = [self.heads(block), self.own_heads(block)].map(|n| n * self.attention_head_dim);
        let (hidden, text_hidden) = (self.ffn_width(block), self.ffn_context_width(block));
        let (dual, last) = (self.is_dual(block), self.is_last(block));
        let mut unit = |kind, sites: &[(bool, Stream, usize, usize, &[&str])]| {
            let sites = sites.iter().filter(|site| site.0);
            let sites = sites.map(|(_, stream, width, rows, names)| {
                let site = SiteId(inventory.sites.len() as u32);
                let linears = names.iter().map(|name| {
                    let name = format!("transformer_blocks.{block}.{name}");
                    inventory.linears.push(Linear { name, rows: *rows, site });
                    LinearId(inventory.linears.len() as u32 - 1)
                });
                let linears: Vec<_> = linears.collect();
                let name = format!("transformer_blocks.{block}.{}", names[0]);
                inventory.sites.push(Site { name, width: *width, stream: *stream, linears });
                site
            });
            let sites = sites.collect();
            inventory.units.push(Unit { block: block as u32, kind, sites });
        };
        unit(
            UnitKind::AttentionInputs,
            &[
                (true, Stream::Image, w, attended, &QKV),
                (true, Stream::Text, w, attended, &ADDED_QKV),
                (dual, Stream::Image, w, own, &OWN_QKV),
            ],
        );
        unit(
            UnitKind::AttentionOutputs,
            &[
                (true, Stream::Image, attended, w, &["attn.to_out.0"]),
                (!last, Stream::Text, attended, w, &["attn.to_add_out"]),
                (dual, Stream::Image, own, w, &["attn2.to_out.0"]),
            ],
        );
        unit(
            UnitKind::FfnInputs,
            &[
                (true, Stream::Image, w, hidden, &["ff.net.0.proj"]),
                (!last, Stream::Text, w, text_hidden, &["ff_context.net.0.proj"]),
            ],
        );
        unit(
            UnitKind::FfnHidden,
            &[
                (true, Stream::Image, hidden, w, &["ff.net.2"]),
                (!last, Stream::Text, text_hidden, w, &["ff_context.net.2"]),
            ],
        );
        self.add_structures(block, inventory);
    }

    /// The block's attentions and feed-forward networks. An attention's streams lose the same heads; each network is on its own.
    fn add_structures(&self, block: usize, inventory: &mut Inventory) {
        let name = |name: &str| format!("transformer_blocks.{block}.{name}");
        let ids: BTreeMap<&str, LinearId> = inventory
            .linears
            .iter()
            .zip(0..)
            .map(|(linear, id)| (linear.name.as_str(), LinearId(id)))
            .collect();
        let find = |names: &[&str]| names.iter().filter_map(|n| ids.get(name(n).as_str()).copied()).collect();
        let head = self.attention_head_dim;
        let joint_inputs: Vec<&str> = QKV.into_iter().chain(ADDED_QKV).collect();
        let structure = |module: &str, size, count, outputs: &[&str], inputs: &[&str]| Structure {
            name: name(module),
            block: block as u32,
            size,
            count,
            outputs: find(outputs),
            inputs: find(inputs),
        };
        let (heads, own_heads) = (self.heads(block), self.own_heads(block));
        let (hidden, text_hidden) = (self.ffn_width(block), self.ffn_context_width(block));
        let structures = [
            structure("attn", head, heads, &["attn.to_out.0", "attn.to_add_out"], &joint_inputs),
            structure("attn2", head, own_heads, &["attn2.to_out.0"], &OWN_QKV),
            structure("ff", 1, hidden, &["ff.net.2"], &["ff.net.0.proj"]),
            structure("ff_context", 1, text_hidden, &["ff_context.net.2"], &["ff_context.net.0.proj"]),
        ];
        let structures = structures.into_iter().filter(|structure| structure.count > 0).collect::<Vec<_>>();
        inventory.structures.extend(structures);
    }

    /// Every tensor that a checkpoint of this configuration holds, with its shape.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let w = self.width();
        let patch = self.patch_size;
        let mut shapes = vec![
            ("pos_embed.pos_embed".to_owned(), vec![1, self.pos_embed_max_size * self.pos_embed_max_size, w]),
            ("pos_embed.proj.weight".to_owned(), vec![w, self.in_channels, patch, patch]),
            ("pos_embed.proj.bias".to_owned(), vec![w]),
        ];
        shapes.extend(TimeTextEmbed::shapes(w, self.pooled_projection_dim, false));
        let mut linear = |name: &str, rows: usize, n: usize| {
            shapes.push((format!("{name}.weight"), vec![rows, n]));
            shapes.push((format!("{name}.bias"), vec![rows]));
        };
        linear("context_embedder", w, self.joint_attention_dim);
        linear("norm_out.linear", 2 * w, w);
        linear("proj_out", patch * patch * self.output_channels(), w);
        for block in 0..self.num_layers {
            self.add_block_shapes(block, &mut shapes);
        }
        shapes
    }

    fn add_block_shapes(&self, block: usize, shapes: &mut Vec<(String, Vec<usize>)>) {
        let w = self.width();
        let [attended, own] = [self.heads(block), self.own_heads(block)].map(|n| n * self.attention_head_dim);
        let (hidden, text_hidden) = (self.ffn_width(block), self.ffn_context_width(block));
        let (dual, last) = (self.is_dual(block), self.is_last(block));
        let mut linear = |name: &str, rows: usize, n: usize| {
            shapes.push((format!("transformer_blocks.{block}.{name}.weight"), vec![rows, n]));
            shapes.push((format!("transformer_blocks.{block}.{name}.bias"), vec![rows]));
        };
        linear("norm1.linear", if dual { 9 * w } else { 6 * w }, w);
        linear("norm1_context.linear", if last { 2 * w } else { 6 * w }, w);
        QKV.into_iter().chain(ADDED_QKV).for_each(|name| linear(name, attended, w));
        linear("attn.to_out.0", w, attended);
        linear("ff.net.0.proj", hidden, w);
        linear("ff.net.2", w, hidden);
        if dual {
            OWN_QKV.into_iter().for_each(|name| linear(name, own, w));
            linear("attn2.to_out.0", w, own);
        }
        if !last {
            linear("attn.to_add_out", w, attended);
            linear("ff_context.net.0.proj", text_hidden, w);
            linear("ff_context.net.2", w, text_hidden);
        }
        if self.norms_queries() {
            let of = [
                "attn.norm_q",
                "attn.norm_k",
                "attn.norm_added_q",
                "attn.norm_added_k",
                "attn2.norm_q",
                "attn2.norm_k",
            ];
            for name in &of[..if dual { 6 } else { 4 }] {
                shapes.push((
                    format!("transformer_blocks.{block}.{name}.weight"),
                    vec![self.attention_head_dim],
                ));
            }
        }
    }

    /// Holds a checkpoint's headers against this configuration; no weight is read.
    ///
    /// # Errors
    /// When a tensor is missing, has another shape or a type that is no float, or is one that the configuration does not ask for.
    pub fn check(&self, weights: &Weights) -> Result<()> {
        loading::check(self.shapes(), weights)
    }
}

fn volume(shape: &[usize]) -> u64 {
    shape.iter().map(|n| *n as u64).product()
}
