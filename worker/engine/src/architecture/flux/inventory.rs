//! What a model of this configuration holds: its prunable parts, and every tensor of its checkpoint.

use obsdiff_proto::{Inventory, PartKind, Stream, StreamId};

use super::FluxConfig;
use crate::model::conditioning::TimeTextEmbed;
use crate::model::listing::{BlockListing, ListedSite, ListedStructure, Listing};

const QKV: [&str; 3] = ["attn.to_q", "attn.to_k", "attn.to_v"];
const ADDED_QKV: [&str; 3] = ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"];
/// The streams' places among [`Inventory::streams`].
const IMAGE: StreamId = StreamId(0);
const TEXT: StreamId = StreamId(1);
const JOINT: StreamId = StreamId(2);

impl FluxConfig {
    /// Units, sites and linears in the order in which a forward call reaches them, from the configuration alone. Blocks are counted
    /// through both kinds.
    pub fn inventory(&self) -> Inventory {
        let shapes = self.shapes();
        let streams =
            [Stream::new("image", 1, false), Stream::new("text", 0, true), Stream::new("joint", 1, true)];
        let mut listing = Listing::new(&streams, &shapes);
        for block in 0..self.num_layers {
            self.add_double(block, &mut listing.block(block, format!("transformer_blocks.{block}")));
        }
        for block in 0..self.num_single_layers {
            let prefix = format!("single_transformer_blocks.{block}");
            self.add_single(block, &mut listing.block(self.num_layers + block, prefix));
        }
        listing.finish()
    }

    fn add_double(&self, block: usize, listing: &mut BlockListing<'_, '_>) {
        let (w, attended) = (self.width(), self.heads(block) * self.attention_head_dim);
        let [hidden, text_hidden] = self.ffn_widths(block);
        let mut unit =
            |name: &str, image: (usize, &[&'static str], usize), text: (usize, &[&'static str], usize)| {
                let image = ListedSite::new(IMAGE, image.0, image.1, image.2);
                listing.unit(name, [Some(image), Some(ListedSite::new(TEXT, text.0, text.1, text.2))]);
            };
        unit("attention-inputs", (w, &QKV, attended), (w, &ADDED_QKV, attended));
        unit("attention-outputs", (attended, &["attn.to_out.0"], w), (attended, &["attn.to_add_out"], w));
        unit("ffn-inputs", (w, &["ff.net.0.proj"], hidden), (w, &["ff_context.net.0.proj"], text_hidden));
        unit("ffn-hidden", (hidden, &["ff.net.2"], w), (text_hidden, &["ff_context.net.2"], w));
        let inputs: Vec<&str> = QKV.into_iter().chain(ADDED_QKV).collect();
        listing.structure(&ListedStructure {
            module: "attn",
            kind: PartKind::Heads,
            size: self.attention_head_dim,
            count: self.heads(block),
            outputs: &[("attn.to_out.0", 0), ("attn.to_add_out", 0)],
            inputs: &inputs,
        });
        let networks = [
            ("ff", hidden, "ff.net.2", "ff.net.0.proj"),
            ("ff_context", text_hidden, "ff_context.net.2", "ff_context.net.0.proj"),
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

    /// Attention and feed-forward network work side by side on the same inputs, and one linear reads both: the heads first, then
    /// the hidden layer.
    fn add_single(&self, block: usize, listing: &mut BlockListing<'_, '_>) {
        let (w, hidden) = (self.width(), self.mlp_width(block));
        let attended = self.single_heads(block) * self.attention_head_dim;
        let inputs = ListedSite::new(JOINT, w, &QKV, attended).and("proj_mlp", hidden);
        listing.unit("block-inputs", [Some(inputs)]);
        let outputs =
            ListedSite::joined(JOINT, &[("attention", attended), ("hidden", hidden)], "proj_out", w);
        listing.unit("block-outputs", [Some(outputs)]);
        listing.structure(&ListedStructure {
            module: "attn",
            kind: PartKind::Heads,
            size: self.attention_head_dim,
            count: self.single_heads(block),
            outputs: &[("proj_out", 0)],
            inputs: &QKV,
        });
        listing.structure(&ListedStructure {
            module: "proj_mlp",
            kind: PartKind::Neurons,
            size: 1,
            count: hidden,
            outputs: &[("proj_out", attended)],
            inputs: &["proj_mlp"],
        });
    }

    /// Every tensor that a checkpoint of this configuration holds, with its shape.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let w = self.width();
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
            let attended = self.heads(block) * self.attention_head_dim;
            QKV.into_iter().chain(ADDED_QKV).for_each(|name| linear(name, attended, w));
            ["attn.to_out.0", "attn.to_add_out"].into_iter().for_each(|name| linear(name, w, attended));
            for (network, hidden) in ["ff", "ff_context"].into_iter().zip(self.ffn_widths(block)) {
                linear(&format!("{network}.net.0.proj"), hidden, w);
                linear(&format!("{network}.net.2"), w, hidden);
            }
        }
        for block in 0..self.num_single_layers {
            let mut linear =
                |name: &str, rows, n| linear(format!("single_transformer_blocks.{block}.{name}"), rows, n);
            linear("norm.linear", 3 * w, w);
            let attended = self.single_heads(block) * self.attention_head_dim;
            let hidden = self.mlp_width(block);
            QKV.into_iter().for_each(|name| linear(name, attended, w));
            linear("proj_mlp", hidden, w);
            linear("proj_out", w, attended + hidden);
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
}
