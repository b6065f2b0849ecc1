"""A FLUX.1 transformer whose blocks have kept different numbers of heads and neurons. Written by obsdiff.

    import importlib, sys
    import torch
    from diffusers import FluxPipeline

    sys.path.insert(0, "PIPELINE/transformer")
    module = importlib.import_module("modeling_pruned_flux")
    transformer = module.load_pruned_transformer("PIPELINE/transformer", torch_dtype=torch.bfloat16)
    pipeline = FluxPipeline.from_pretrained("PIPELINE", transformer=transformer, torch_dtype=torch.bfloat16)

From diffusers 0.36.0 on, `AutoModel.from_pretrained("PIPELINE/transformer", trust_remote_code=True)` loads it, too.
"""

import os
import shutil

import diffusers
from diffusers.configuration_utils import register_to_config
from torch import nn

# The first release whose transformer has all of the arguments below.
if [int(number) for number in diffusers.__version__.split(".")[:2]] < [0, 32]:
    raise ImportError(
        f"this transformer needs diffusers 0.32.0 or later, and {diffusers.__version__} is installed: "
        "pip install --upgrade diffusers"
    )


class PrunedFluxTransformer2DModel(diffusers.FluxTransformer2DModel):
    """diffusers' transformer with smaller linears: the lists hold a number for every block of their kind.

    `auto_map` names this class to AutoModel. It is kept when the model is saved.
    """

    @register_to_config
    def __init__(
        self,
        patch_size=1,
        in_channels=64,
        out_channels=None,
        num_layers=19,
        num_single_layers=38,
        attention_head_dim=128,
        num_attention_heads=24,
        joint_attention_dim=4096,
        pooled_projection_dim=768,
        guidance_embeds=False,
        axes_dims_rope=(16, 56, 56),
        attention_heads_per_block=None,
        ffn_width_per_block=None,
        ffn_context_width_per_block=None,
        single_attention_heads_per_block=None,
        single_mlp_width_per_block=None,
        auto_map=None,
    ):
        super().__init__(
            patch_size=patch_size,
            in_channels=in_channels,
            out_channels=out_channels,
            num_layers=num_layers,
            num_single_layers=num_single_layers,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            joint_attention_dim=joint_attention_dim,
            pooled_projection_dim=pooled_projection_dim,
            guidance_embeds=guidance_embeds,
            axes_dims_rope=axes_dims_rope,
        )
        for index, block in enumerate(self.transformer_blocks):
            if attention_heads_per_block is not None:
                _keep_heads(block.attn, attention_heads_per_block[index], attention_head_dim)
            for network, widths in (
                (block.ff, ffn_width_per_block),
                (block.ff_context, ffn_context_width_per_block),
            ):
                if widths is not None:
                    _keep_neurons(network, widths[index])
        for index, block in enumerate(self.single_transformer_blocks):
            attended, hidden = block.attn.heads * attention_head_dim, block.proj_mlp.out_features
            if single_attention_heads_per_block is not None:
                attended = single_attention_heads_per_block[index] * attention_head_dim
                _keep_heads(block.attn, single_attention_heads_per_block[index], attention_head_dim)
            if single_mlp_width_per_block is not None:
                hidden = block.mlp_hidden_dim = single_mlp_width_per_block[index]
                block.proj_mlp = _linear(block.proj_mlp, block.proj_mlp.in_features, hidden)
            # It reads what was attended to and the hidden layer, joined.
            block.proj_out = _linear(block.proj_out, attended + hidden, block.proj_out.out_features)

    def save_config(self, save_directory, *args, **kwargs):
        """Saves the configuration, which `save_pretrained` does too, and this file beside it."""
        _save_module(save_directory)
        super().save_config(save_directory, *args, **kwargs)


# A pipeline is saved with the name of the module that has its transformer's class, and looks there when it is loaded again.
PrunedFluxTransformer2DModel.__module__ = "diffusers"
diffusers.PrunedFluxTransformer2DModel = PrunedFluxTransformer2DModel


def load_pruned_transformer(directory=None, **kwargs):
    """The transformer in `directory`, by default the one that this file lies in; `kwargs` are those of `from_pretrained`."""
    return _load(PrunedFluxTransformer2DModel, directory, kwargs)
