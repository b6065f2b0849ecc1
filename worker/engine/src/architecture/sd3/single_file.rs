//! The layout of the checkpoints that Stability AI publishes as one file, which ComfyUI and stable-diffusion.cpp read. The names, which
//! rows are stacked and which halves change places are those that diffusers' `scripts/convert_sd3_to_diffusers.py` reads.

use super::Sd3Config;
use crate::checkpoint::{JoinedTensor, MovedBlocks, MovedModule, joined, renamed, stacked, swapped};

/// Before every name, where the file may hold encoders and a decoder, too.
const PREFIX: &str = "model.diffusion_model.";

const TOP: [MovedModule; 9] = [
    renamed("pos_embed.pos_embed", "pos_embed"),
    renamed("pos_embed.proj", "x_embedder.proj"),
    renamed("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    renamed("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    renamed("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
    renamed("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
    renamed("context_embedder", "context_embedder"),
    renamed("proj_out", "final_layer.linear"),
    // Shift and scale there, scale and shift here.
    swapped("norm_out.linear", "final_layer.adaLN_modulation.1"),
];

const BLOCK: [MovedModule; 24] = [
    stacked("attn.to_q", "x_block.attn.qkv", 0),
    stacked("attn.to_k", "x_block.attn.qkv", 1),
    stacked("attn.to_v", "x_block.attn.qkv", 2),
    stacked("attn.add_q_proj", "context_block.attn.qkv", 0),
    stacked("attn.add_k_proj", "context_block.attn.qkv", 1),
    stacked("attn.add_v_proj", "context_block.attn.qkv", 2),
    renamed("attn.norm_q", "x_block.attn.ln_q"),
    renamed("attn.norm_k", "x_block.attn.ln_k"),
    renamed("attn.norm_added_q", "context_block.attn.ln_q"),
    renamed("attn.norm_added_k", "context_block.attn.ln_k"),
    renamed("attn.to_out.0", "x_block.attn.proj"),
    renamed("attn.to_add_out", "context_block.attn.proj"),
    stacked("attn2.to_q", "x_block.attn2.qkv", 0),
    stacked("attn2.to_k", "x_block.attn2.qkv", 1),
    stacked("attn2.to_v", "x_block.attn2.qkv", 2),
    renamed("attn2.norm_q", "x_block.attn2.ln_q"),
    renamed("attn2.norm_k", "x_block.attn2.ln_k"),
    renamed("attn2.to_out.0", "x_block.attn2.proj"),
    renamed("norm1.linear", "x_block.adaLN_modulation.1"),
    renamed("ff.net.0.proj", "x_block.mlp.fc1"),
    renamed("ff.net.2", "x_block.mlp.fc2"),
    renamed("ff_context.net.0.proj", "context_block.mlp.fc1"),
    renamed("ff_context.net.2", "context_block.mlp.fc2"),
    renamed("norm1_context.linear", CONTEXT_MODULATION),
];

const CONTEXT_MODULATION: &str = "context_block.adaLN_modulation.1";

impl Sd3Config {
    /// The tensors of a checkpoint in one file, made of those of `names`; the name of one that has no place there, if any.
    pub(super) fn in_one_file<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<JoinedTensor>, String> {
        // The last block's text stream ends at its attention: what modulates it are a shift and a scale, as at the model's end.
        let of = |block: usize| {
            let last = self.is_last(block).then_some(swapped("norm1_context.linear", CONTEXT_MODULATION));
            last.into_iter().chain(BLOCK).collect()
        };
        let blocks = [MovedBlocks { lists: ["transformer_blocks", "joint_blocks"], of: &of }];
        let mut tensors = joined(names, &TOP, &blocks)?;
        tensors.iter_mut().for_each(|tensor| tensor.name.insert_str(0, PREFIX));
        Ok(tensors)
    }
}
