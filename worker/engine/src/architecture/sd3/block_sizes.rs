//! Blocks that differ: how many heads and neurons each one has kept.

use serde::{Deserialize, Serialize};

use super::Sd3Config;
use crate::architecture::shared::block_sizes::{List, problem};

/// The sizes of every block by itself, where structured pruning took heads and neurons. The lists are empty where all blocks have the same sizes;
/// otherwise each holds a number for every block, 0 where the block has no such module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockSizes {
    /// Heads of the joint attention.
    pub attention_heads_per_block: Vec<usize>,
    /// Heads of the image stream's second attention.
    pub attention_2_heads_per_block: Vec<usize>,
    /// Neurons of the image stream's feed-forward network.
    pub ffn_width_per_block: Vec<usize>,
    /// Neurons of the text stream's feed-forward network.
    pub ffn_context_width_per_block: Vec<usize>,
}

/// Its keys in a configuration.
pub(super) const KEYS: [&str; 4] = [
    "attention_heads_per_block",
    "attention_2_heads_per_block",
    "ffn_width_per_block",
    "ffn_context_width_per_block",
];

impl BlockSizes {
    fn lists(&self) -> [List<'_>; 4] {
        let [heads, heads_2, ffn, ffn_context] = KEYS;
        [
            (heads, &self.attention_heads_per_block),
            (heads_2, &self.attention_2_heads_per_block),
            (ffn, &self.ffn_width_per_block),
            (ffn_context, &self.ffn_context_width_per_block),
        ]
    }
}

impl Sd3Config {
    /// Heads of a block's joint attention.
    pub fn heads(&self, block: usize) -> usize {
        self.blocks.attention_heads_per_block.get(block).copied().unwrap_or(self.num_attention_heads)
    }

    /// Heads of a block's second attention; 0 where it has none.
    pub fn own_heads(&self, block: usize) -> usize {
        let dense = if self.is_dual(block) { self.num_attention_heads } else { 0 };
        self.blocks.attention_2_heads_per_block.get(block).copied().unwrap_or(dense)
    }

    /// Neurons of a block's feed-forward network on the image stream.
    pub fn ffn_width(&self, block: usize) -> usize {
        self.blocks.ffn_width_per_block.get(block).copied().unwrap_or(self.hidden_width())
    }

    /// Neurons of a block's feed-forward network on the text stream; 0 where that stream ends before it.
    pub fn ffn_context_width(&self, block: usize) -> usize {
        let dense = if self.is_last(block) { 0 } else { self.hidden_width() };
        self.blocks.ffn_context_width_per_block.get(block).copied().unwrap_or(dense)
    }

    /// The sizes of every block, written out.
    pub fn block_sizes(&self) -> BlockSizes {
        let list = |of: &dyn Fn(usize) -> usize| (0..self.num_layers).map(of).collect();
        BlockSizes {
            attention_heads_per_block: list(&|block| self.heads(block)),
            attention_2_heads_per_block: list(&|block| self.own_heads(block)),
            ffn_width_per_block: list(&|block| self.ffn_width(block)),
            ffn_context_width_per_block: list(&|block| self.ffn_context_width(block)),
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
        problem(self.blocks.lists(), dense.lists(), |_| "num_layers")
    }
}
