"""A Stable Diffusion 3 transformer whose blocks have kept different numbers of heads and neurons. Written by obsdiff.

    import importlib, sys
    import torch
    from diffusers import StableDiffusion3Pipeline

    sys.path.insert(0, "PIPELINE/transformer")
    module = importlib.import_module("modeling_pruned_sd3")
    transformer = module.load_pruned_transformer("PIPELINE/transformer", torch_dtype=torch.bfloat16)
    pipeline = StableDiffusion3Pipeline.from_pretrained("PIPELINE", transformer=transformer, torch_dtype=torch.bfloat16)

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


class PrunedSD3Transformer2DModel(diffusers.SD3Transformer2DModel):
    """diffusers' transformer with smaller linears: the lists hold a number for every block, 0 where it has no such module.

    `auto_map` names this class to AutoModel. It is kept when the model is saved.
    """

    @register_to_config
    def __init__(
        self,
        sample_size=128,
        patch_size=2,
        in_channels=16,
        num_layers=18,
        attention_head_dim=64,
        num_attention_heads=18,
        joint_attention_dim=4096,
        caption_projection_dim=1152,
        pooled_projection_dim=2048,
        out_channels=16,
        pos_embed_max_size=96,
        dual_attention_layers=(),
        qk_norm=None,
        attention_heads_per_block=None,
        attention_2_heads_per_block=None,
        ffn_width_per_block=None,
        ffn_context_width_per_block=None,
        auto_map=None,
    ):
        super().__init__(
            sample_size=sample_size,
            patch_size=patch_size,
            in_channels=in_channels,
            num_layers=num_layers,
            attention_head_dim=attention_head_dim,
            num_attention_heads=num_attention_heads,
            joint_attention_dim=joint_attention_dim,
            caption_projection_dim=caption_projection_dim,
            pooled_projection_dim=pooled_projection_dim,
            out_channels=out_channels,
            pos_embed_max_size=pos_embed_max_size,
            dual_attention_layers=dual_attention_layers,
            qk_norm=qk_norm,
        )
        for index, block in enumerate(self.transformer_blocks):
            for attention, heads in (
                (block.attn, attention_heads_per_block),
                (getattr(block, "attn2", None), attention_2_heads_per_block),
            ):
                if attention is not None and heads is not None:
                    _keep_heads(attention, heads[index], attention_head_dim)
            for network, widths in (
                (block.ff, ffn_width_per_block),
                (getattr(block, "ff_context", None), ffn_context_width_per_block),
            ):
                if network is not None and widths is not None:
                    _keep_neurons(network, widths[index])

    def save_config(self, save_directory, *args, **kwargs):
        """Saves the configuration, which `save_pretrained` does too, and this file beside it."""
        _save_module(save_directory)
        super().save_config(save_directory, *args, **kwargs)


# A pipeline is saved with the name of the module that has its transformer's class, and looks there when it is loaded again.
PrunedSD3Transformer2DModel.__module__ = "diffusers"
diffusers.PrunedSD3Transformer2DModel = PrunedSD3Transformer2DModel


def load_pruned_transformer(directory=None, **kwargs):
    """The transformer in `directory`, by default the one that this file lies in; `kwargs` are those of `from_pretrained`."""
    return _load(PrunedSD3Transformer2DModel, directory, kwargs)
