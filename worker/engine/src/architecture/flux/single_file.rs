//! The layout of the checkpoints that Black Forest Labs publishes as one file, which ComfyUI and stable-diffusion.cpp read. The names,
//! which rows are stacked and which halves change places are those that diffusers' `scripts/convert_flux_to_diffusers.py` reads.

use super::FluxConfig;
use crate::checkpoint::{JoinedTensor, MovedBlocks, MovedModule, joined, renamed, stacked, swapped};

const TOP: [MovedModule; 10] = [
    renamed("x_embedder", "img_in"),
    renamed("context_embedder", "txt_in"),
    renamed("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    renamed("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    renamed("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    renamed("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    renamed("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    renamed("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    renamed("proj_out", "final_layer.linear"),
    // Shift and scale there, scale and shift here.
    swapped("norm_out.linear", "final_layer.adaLN_modulation.1"),
];

const DOUBLE: [MovedModule; 18] = [
    renamed("norm1.linear", "img_mod.lin"),
    renamed("norm1_context.linear", "txt_mod.lin"),
    stacked("attn.to_q", "img_attn.qkv", 0),
    stacked("attn.to_k", "img_attn.qkv", 1),
    stacked("attn.to_v", "img_attn.qkv", 2),
    stacked("attn.add_q_proj", "txt_attn.qkv", 0),
    stacked("attn.add_k_proj", "txt_attn.qkv", 1),
    stacked("attn.add_v_proj", "txt_attn.qkv", 2),
    renamed("attn.norm_q.weight", "img_attn.norm.query_norm.scale"),
    renamed("attn.norm_k.weight", "img_attn.norm.key_norm.scale"),
    renamed("attn.norm_added_q.weight", "txt_attn.norm.query_norm.scale"),
    renamed("attn.norm_added_k.weight", "txt_attn.norm.key_norm.scale"),
    renamed("attn.to_out.0", "img_attn.proj"),
    renamed("attn.to_add_out", "txt_attn.proj"),
    renamed("ff.net.0.proj", "img_mlp.0"),
    renamed("ff.net.2", "img_mlp.2"),
    renamed("ff_context.net.0.proj", "txt_mlp.0"),
    renamed("ff_context.net.2", "txt_mlp.2"),
];

const SINGLE: [MovedModule; 8] = [
    renamed("norm.linear", "modulation.lin"),
    stacked("attn.to_q", "linear1", 0),
    stacked("attn.to_k", "linear1", 1),
    stacked("attn.to_v", "linear1", 2),
    stacked("proj_mlp", "linear1", 3),
    renamed("attn.norm_q.weight", "norm.query_norm.scale"),
    renamed("attn.norm_k.weight", "norm.key_norm.scale"),
    renamed("proj_out", "linear2"),
];

impl FluxConfig {
    /// The tensors of a checkpoint in one file, made of those of `names`; the name of one that has no place there, if any.
    pub(super) fn in_one_file<'a>(
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<JoinedTensor>, String> {
        let blocks = [
            MovedBlocks { lists: ["transformer_blocks", "double_blocks"], of: &|_| DOUBLE.to_vec() },
            MovedBlocks { lists: ["single_transformer_blocks", "single_blocks"], of: &|_| SINGLE.to_vec() },
        ];
        joined(names, &TOP, &blocks)
    }
}
