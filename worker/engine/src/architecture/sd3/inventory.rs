//! What a model of this configuration holds: its prunable parts, and every tensor of its checkpoint.

use obsdiff_proto::{Inventory, PartKind, Stream, StreamId};

use super::Sd3Config;
use crate::model::conditioning::TimeTextEmbed;
use crate::model::listing::{BlockListing, ListedSite, ListedStructure, Listing};

const QKV: [&str; 3] = ["attn.to_q", "attn.to_k", "attn.to_v"];
const ADDED_QKV: [&str; 3] = ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"];
const OWN_QKV: [&str; 3] = ["attn2.to_q", "attn2.to_k", "attn2.to_v"];

/// The streams' places among [`Inventory::streams`].
const IMAGE: StreamId = StreamId(0);
const TEXT: StreamId = StreamId(1);

impl Sd3Config {
    /// Units, sites and linears in the order in which a forward call reaches them, from the configuration alone.
    pub fn inventory(&self) -> Inventory {
        // The table of positions is computed, not trained.
        let trained = |(name, _): &(String, Vec<usize>)| name != "pos_embed.pos_embed";
        let shapes: Vec<_> = self.shapes().into_iter().filter(trained).collect();
        let streams = [Stream::new("image", 1, false), Stream::new("text", 0, true)];
        let mut listing = Listing::new(&streams, &shapes);
        for block in 0..self.num_layers {
            self.add_block(block, &mut listing.block(block, format!("transformer_blocks.{block}")));
        }
        listing.finish()
    }

    fn add_block(&self, block: usize, listing: &mut BlockListing<'_, '_>) {
        let w = self.width();
        let [attended, own] = [self.heads(block), self.own_heads(block)].map(|n| n * self.attention_head_dim);
        let (hidden, text_hidden) = (self.ffn_width(block), self.ffn_context_width(block));
        let (dual, last) = (self.is_dual(block), self.is_last(block));
        let site = ListedSite::new;
        listing.unit(
            "attention-inputs",
            [
                Some(site(IMAGE, w, &QKV, attended)),
                Some(site(TEXT, w, &ADDED_QKV, attended)),
                dual.then(|| site(IMAGE, w, &OWN_QKV, own)),
            ],
        );
        listing.unit(
            "attention-outputs",
            [
                Some(site(IMAGE, attended, &["attn.to_out.0"], w)),
                (!last).then(|| site(TEXT, attended, &["attn.to_add_out"], w)),
                dual.then(|| site(IMAGE, own, &["attn2.to_out.0"], w)),
            ],
        );
        listing.unit(
            "ffn-inputs",
            [
                Some(site(IMAGE, w, &["ff.net.0.proj"], hidden)),
                (!last).then(|| site(TEXT, w, &["ff_context.net.0.proj"], text_hidden)),
            ],
        );
        listing.unit(
            "ffn-hidden",
            [
                Some(site(IMAGE, hidden, &["ff.net.2"], w)),
                (!last).then(|| site(TEXT, text_hidden, &["ff_context.net.2"], w)),
            ],
        );
        self.add_structures(block, listing);
    }

    /// The block's attentions and feed-forward networks. An attention's streams lose the same heads; each network is on its own.
    fn add_structures(&self, block: usize, listing: &mut BlockListing<'_, '_>) {
        let size = self.attention_head_dim;
        let joint_inputs: Vec<&str> = QKV.into_iter().chain(ADDED_QKV).collect();
        listing.structure(&ListedStructure {
            module: "attn",
            kind: PartKind::Heads,
            size,
            count: self.heads(block),
            outputs: &[("attn.to_out.0", 0), ("attn.to_add_out", 0)],
            inputs: &joint_inputs,
        });
        listing.structure(&ListedStructure {
            module: "attn2",
            kind: PartKind::Heads,
            size,
            count: self.own_heads(block),
            outputs: &[("attn2.to_out.0", 0)],
            inputs: &OWN_QKV,
        });
        let networks = [
            ("ff", self.ffn_width(block), "ff.net.2", "ff.net.0.proj"),
            ("ff_context", self.ffn_context_width(block), "ff_context.net.2", "ff_context.net.0.proj"),
        ];
        for (module, count, output, input) in networks {
            listing.structure(&ListedStructure {
                module,
                kind: PartKind::Neurons,
                size: 1,
                count,
                outputs: &[(output, 0)],
                inputs: &[input],
            });
        }
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
}
