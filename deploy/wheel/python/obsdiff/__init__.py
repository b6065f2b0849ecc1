"""Pipelines that the command `obsdiff` has pruned, in Python.

    import obsdiff

    pipeline = obsdiff.load("out")
"""

import importlib
import inspect
import json
import os
from importlib.metadata import version

__all__ = ["load"]


def load(path, **kwargs):
    """The diffusers pipeline in the folder `path`, also where its transformer lost attention heads and neurons.

    `kwargs` are those of diffusers' `DiffusionPipeline.from_pretrained`; the transformer gets `torch_dtype`, `dtype` and `variant` of them.
    Without a type all of it is f32. No code that lies in `path` is run: how smaller transformers are built is known to this package.
    """
    path = os.fspath(path)
    if not os.path.isfile(os.path.join(path, "model_index.json")):
        raise FileNotFoundError(f"{path} has no model_index.json: give the folder that the job names in output.path")
    diffusers = _import("diffusers")
    if "torch_dtype" not in kwargs and "dtype" not in kwargs:
        # diffusers loads the transformer in f32, but transformers 5 text encoders in the type of their files, and the two do not fit.
        kwargs[_name_of_dtype(diffusers)] = _import("torch").float32
    if "transformer" not in kwargs:
        folder = os.path.join(path, "transformer")
        module = _module_of(folder)
        if module is not None:
            shared = {name: kwargs[name] for name in ("torch_dtype", "dtype", "variant") if name in kwargs}
            kwargs["transformer"] = module.load_pruned_transformer(folder, **shared)
    for name in _absent(path, diffusers):
        kwargs.setdefault(name, None)
    return diffusers.DiffusionPipeline.from_pretrained(path, **kwargs)


def _import(package):
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as missing:
        raise ModuleNotFoundError(
            f"obsdiff.load needs diffusers, and {missing.name} is not installed: pip install 'obsdiff[diffusers]'"
        ) from missing


def _name_of_dtype(diffusers):
    """The argument for the type of all weights: releases before 0.40 do not know `dtype`, and later ones warn of `torch_dtype`."""
    release = [int(number) for number in diffusers.__version__.split(".")[:2]]
    return "dtype" if release >= [0, 40] else "torch_dtype"


def _absent(path, diffusers):
    """The text encoders and tokenizers that the pipeline in `path` does without, although its class asks for them."""
    with open(os.path.join(path, "model_index.json"), encoding="utf-8") as file:
        index = json.load(file)
    pipeline = getattr(diffusers, index.get("_class_name") or "", None)
    asked = [] if pipeline is None else inspect.signature(pipeline.__init__).parameters
    return [name for name in asked if name.startswith(("text_encoder", "tokenizer")) and index.get(name) in (None, [None, None])]


def _module_of(folder):
    """The module of `obsdiff.loaders` that builds the transformer in `folder`; none where diffusers builds it by itself."""
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            named = json.load(file).get("auto_map", {}).get("AutoModel")
    except FileNotFoundError:
        return None
    if named is None:
        return None
    name = named.split(".")[0]
    if os.path.isfile(os.path.join(os.path.dirname(__file__), "loaders", f"{name}.py")):
        return importlib.import_module(f"obsdiff.loaders.{name}")
    raise ValueError(
        f"{folder} needs the module {name}, which obsdiff {version('obsdiff')} does not have: pip install --upgrade obsdiff"
    )
