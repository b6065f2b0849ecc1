"""Holds `Layer` of published.py to what the published code made of the same weights and inputs, in golden files of the solver.

  python published_golden.py GOLDEN.safetensors...
"""

import sys

import torch
from safetensors.torch import load_file

from published import Layer

for path in sys.argv[1:]:
    golden = load_file(path)
    weight, wanted = golden["weight"], golden["pruned"]
    layer = Layer(weight.shape[1], "cpu")
    for rows, alpha in zip(golden["inputs"], golden["alpha"].tolist()):
        layer.observe(rows, alpha)
    off = (layer.hessian - golden["hessian"]).norm() / golden["hessian"].norm()
    assert off < 1e-5, f"{path}: the Hessian is {off} off"
    found = layer.prune(weight, float(f"{golden['sparsity'].item():.6g}"))
    differing = int(((found == 0) != (wanted == 0)).sum())
    assert differing == 0, f"{path}: {differing} zeros differ"
    off = (found - wanted).norm() / wanted.norm()
    assert off < 1e-4, f"{path}: the weight is {off} off"
    print(f"{path}: the weight is {off:.1e} off")
