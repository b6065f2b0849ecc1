"""Loads a pipeline that obsdiff has shrunk, both ways, and records final latents and decoded pictures.

  python shrunk_pipeline.py PIPELINE_DIR OUT.safetensors PROMPT...
"""

import importlib.util
import os
import sys

import torch
from diffusers import AutoModel, StableDiffusion3Pipeline
from safetensors.torch import save_file

STEPS, GUIDANCE, SEED, SIZE, TEXT_LENGTH = 10, 4.0, 11, 32, 24

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_grad_enabled(False)
directory, out, prompts = sys.argv[1], sys.argv[2], sys.argv[3:]
folder = os.path.join(directory, "transformer")

spec = importlib.util.spec_from_file_location("modeling_pruned_sd3", os.path.join(folder, "modeling_pruned_sd3.py"))
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
by_auto = AutoModel.from_pretrained(folder, trust_remote_code=True, torch_dtype=torch.float32)
by_function = module.load_pruned_transformer(folder, torch_dtype=torch.float32)


def latents(transformer):
    pipe = StableDiffusion3Pipeline.from_pretrained(directory, transformer=transformer, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    edge = SIZE // pipe.vae_scale_factor
    found = []
    for k, prompt in enumerate(prompts):
        generator = torch.Generator("cpu").manual_seed(SEED + k)
        noise = torch.randn((1, transformer.config.in_channels, edge, edge), generator=generator)
        found.append(
            pipe(
                prompt=prompt,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                height=SIZE,
                width=SIZE,
                latents=noise,
                max_sequence_length=TEXT_LENGTH,
                output_type="latent",
            ).images
        )
    return pipe, torch.cat(found)


pipe, by_auto = latents(by_auto)
_, by_function = latents(by_function)
vae = pipe.vae
pictures = vae.decode(by_auto / vae.config.scaling_factor + vae.config.shift_factor).sample
save_file(
    {
        "latents": by_auto.contiguous(),
        "latents.by_function": by_function.contiguous(),
        "pictures": pictures.contiguous(),
    },
    out,
)
