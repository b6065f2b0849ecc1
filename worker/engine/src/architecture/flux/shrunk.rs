//! The configuration of a model that lost heads and neurons, for obsdiff and for diffusers.

use std::path::Path;

use super::FluxConfig;
use super::config::PRUNED_CLASS;
use crate::Result;
use crate::architecture::shared::{block_sizes, module};

/// The Python module that lies beside the configuration.
pub const MODULE_FILE: &str = "modeling_pruned_flux.py";

/// Its text: diffusers' class with the sizes of each block, and a function that loads it.
pub const MODULE: &str = module!("modeling_pruned_flux.py");

impl FluxConfig {
    /// The same model with `kept[i]` parts left of structure i of its inventory.
    pub fn shrunk(&self, kept: &[usize]) -> Self {
        let mut blocks = self.block_sizes();
        for (structure, kept) in self.inventory().structures.iter().zip(kept) {
            let block = structure.block as usize;
            let module = structure.name.rsplit('.').next();
            let (list, place) = match (block.checked_sub(self.num_layers), module) {
                (None, Some("attn")) => (&mut blocks.attention_heads_per_block, block),
                (None, Some("ff")) => (&mut blocks.ffn_width_per_block, block),
                (None, _) => (&mut blocks.ffn_context_width_per_block, block),
                (Some(single), Some("attn")) => (&mut blocks.single_attention_heads_per_block, single),
                (Some(single), _) => (&mut blocks.single_mlp_width_per_block, single),
            };
            if let Some(size) = list.get_mut(place) {
                *size = *kept;
            }
        }
        Self { blocks, ..self.clone() }
    }

    /// `config.json` of this model: that in the `source` folder with the sizes of each block, the class that knows them, and where
    /// diffusers finds it.
    ///
    /// # Errors
    /// When the source's cannot be read.
    pub fn pruned_json(&self, source: &Path) -> Result<Vec<u8>> {
        block_sizes::pruned_json(source, &self.block_sizes(), PRUNED_CLASS, MODULE_FILE)
    }
}
