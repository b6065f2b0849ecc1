"""Loads a pipeline that obsdiff has shrunk, by each of three ways, and records final latents and decoded pictures. It is saved again as
PIPELINE_DIR-resaved, and loaded from there, too: by this process, and by one that has not seen it before.

  python shrunk_pipeline.py PIPELINE_DIR GUIDANCE TRUE_GUIDANCE OUT.safetensors PROMPT...

Where TRUE_GUIDANCE is above 1, the latents of the first way are recorded by classifier-free guidance of that scale, too.
"""

import glob
import importlib.util
import logging
import os
import subprocess
import sys

import obsdiff
import torch
from diffusers import AutoModel, DiffusionPipeline
from safetensors.torch import save_file

STEPS, SEED, SIZE, TEXT_LENGTH = 10, 11, 32, 24

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_grad_enabled(False)
directory, guidance, true_guidance = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
out, prompts = sys.argv[4], sys.argv[5:]
folder = os.path.join(directory, "transformer")

# What diffusers warns of.
warned = logging.Handler(logging.WARNING)
warned.lines = []
warned.emit = lambda record: warned.lines.append(record.getMessage())
logging.getLogger("diffusers").addHandler(warned)

(file,) = glob.glob(os.path.join(folder, "modeling_pruned_*.py"))
spec = importlib.util.spec_from_file_location("modeling_pruned", file)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
by_auto = AutoModel.from_pretrained(folder, trust_remote_code=True, torch_dtype=torch.float32)
by_function = module.load_pruned_transformer(folder, torch_dtype=torch.float32)
by_package = obsdiff.load(directory, torch_dtype=torch.float32).transformer
assert not any("not expected" in line for line in warned.lines), warned.lines


def latents(transformer, **settings):
    pipe = DiffusionPipeline.from_pretrained(directory, transformer=transformer, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    found = []
    for k, prompt in enumerate(prompts):
        image = pipe(
            prompt=prompt,
            num_inference_steps=STEPS,
            guidance_scale=guidance,
            height=SIZE,
            width=SIZE,
            generator=torch.Generator("cpu").manual_seed(SEED + k),
            max_sequence_length=TEXT_LENGTH,
            output_type="latent",
            **settings,
        ).images
        # FLUX.1 gives tokens of four latent pixels each.
        found.append(image if image.ndim == 4 else pipe._unpack_latents(image, SIZE, SIZE, pipe.vae_scale_factor))
    return pipe, torch.cat(found)


recorded = {}
if true_guidance > 1:
    _, recorded["latents.true_guidance"] = latents(by_auto, true_cfg_scale=true_guidance, negative_prompt="")
pipe, by_auto = latents(by_auto)
_, by_function = latents(by_function)
_, by_package = latents(by_package)

resaved = f"{directory}-resaved"
pipe.save_pretrained(resaved)
loading = """
import sys
from diffusers import AutoModel, DiffusionPipeline

transformer = AutoModel.from_pretrained(f"{sys.argv[1]}/transformer", trust_remote_code=True)
DiffusionPipeline.from_pretrained(sys.argv[1], transformer=transformer)
"""
subprocess.run([sys.executable, "-c", loading, resaved], check=True)
by_resaving = obsdiff.load(resaved, torch_dtype=torch.float32).transformer
_, by_resaving = latents(by_resaving)

vae = pipe.vae
pictures = vae.decode(by_auto / vae.config.scaling_factor + vae.config.shift_factor).sample
save_file(
    {
        "latents": by_auto.contiguous(),
        "latents.by_function": by_function.contiguous(),
        "latents.by_package": by_package.contiguous(),
        "latents.by_resaving": by_resaving.contiguous(),
        "pictures": pictures.contiguous(),
        **recorded,
    },
    out,
)
