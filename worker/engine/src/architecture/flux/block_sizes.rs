//! Blocks that differ: how many heads and neurons each one has kept.

use serde::{Deserialize, Serialize};

use super::FluxConfig;
use crate::architecture::shared::block_sizes::{List, problem};

/// The sizes of every block by itself, where structured pruning took heads and neurons. The lists are empty where all blocks have the same sizes;
/// otherwise each holds a number for every block of its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockSizes {
    /// Heads of each double-stream block's attention.
    pub attention_heads_per_block: Vec<usize>,
    /// Neurons of each double-stream block's feed-forward network on the image stream.
    pub ffn_width_per_block: Vec<usize>,
    /// Neurons of each double-stream block's feed-forward network on the text stream.
    pub ffn_context_width_per_block: Vec<usize>,
    /// Heads of each single-stream block's attention.
    pub single_attention_heads_per_block: Vec<usize>,
    /// Neurons of each single-stream block.
    pub single_mlp_width_per_block: Vec<usize>,
}

/// Its keys in a configuration.
pub(super) const KEYS: [&str; 5] = [
    "attention_heads_per_block",
    "ffn_width_per_block",
    "ffn_context_width_per_block",
    "single_attention_heads_per_block",
    "single_mlp_width_per_block",
];

impl BlockSizes {
    fn lists(&self) -> [List<'_>; 5] {
        let [heads, ffn, ffn_context, single_heads, single_mlp] = KEYS;
        [
            (heads, &self.attention_heads_per_block),
            (ffn, &self.ffn_width_per_block),
            (ffn_context, &self.ffn_context_width_per_block),
            (single_heads, &self.single_attention_heads_per_block),
            (single_mlp, &self.single_mlp_width_per_block),
        ]
    }
}

impl FluxConfig {
    /// Heads of a double-stream block's attention.
    pub fn heads(&self, block: usize) -> usize {
        self.blocks.attention_heads_per_block.get(block).copied().unwrap_or(self.num_attention_heads)
    }

    /// Neurons of a double-stream block's feed-forward networks, on the image stream and on the text stream.
    pub fn ffn_widths(&self, block: usize) -> [usize; 2] {
        [&self.blocks.ffn_width_per_block, &self.blocks.ffn_context_width_per_block]
            .map(|list| list.get(block).copied().unwrap_or(self.hidden_width()))
    }

    /// Heads of a single-stream block's attention.
    pub fn single_heads(&self, block: usize) -> usize {
        self.blocks.single_attention_heads_per_block.get(block).copied().unwrap_or(self.num_attention_heads)
    }

    /// Neurons of a single-stream block.
    pub fn mlp_width(&self, block: usize) -> usize {
        self.blocks.single_mlp_width_per_block.get(block).copied().unwrap_or(self.hidden_width())
    }

    /// The sizes of every block, written out.
    pub fn block_sizes(&self) -> BlockSizes {
        let double = |of: &dyn Fn(usize) -> usize| (0..self.num_layers).map(of).collect();
        let single = |of: &dyn Fn(usize) -> usize| (0..self.num_single_layers).map(of).collect();
        BlockSizes {
            attention_heads_per_block: double(&|block| self.heads(block)),
            ffn_width_per_block: double(&|block| self.ffn_widths(block)[0]),
            ffn_context_width_per_block: double(&|block| self.ffn_widths(block)[1]),
            single_attention_heads_per_block: single(&|block| self.single_heads(block)),
            single_mlp_width_per_block: single(&|block| self.mlp_width(block)),
        }
    }

    /// Whether two models differ in nothing except how many heads and neurons their blocks have kept.
    pub fn same_but_for_blocks(&self, other: &Self) -> bool {
        let whole = |config: &Self| Self { blocks: BlockSizes::default(), ..config.clone() };
        whole(self) == whole(other)
    }

    /// What is wrong with the sizes of blocks.
    pub(super) fn blocks_problem(&self) -> Option<String> {
        let dense = Self { blocks: BlockSizes::default(), ..self.clone() }.block_sizes();
        let layers = |key: &str| if key.starts_with("single") { "num_single_layers" } else { "num_layers" };
        problem(self.blocks.lists(), dense.lists(), layers)
    }
}
