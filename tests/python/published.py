"""Times what obsdiff is held to on a GPU, by PyTorch: products, and the Gram and solve of the published OBS-Diff code.

  python published.py TOKENS TIMES.json [cpu|cuda]

It works on the device that is named, or on a GPU where there is one. TIMES.json is what `device_times` has printed. Of each Gram, solve and block in it this prints the same with what PyTorch takes beside it.
The method is that of arXiv 2510.06751; `Layer` is our own words of how the published code computes it.
"""

import json
import sys
import time
from pathlib import Path

import torch

# Columns that are pruned before the ones to their right learn of it.
BLOCK = 128
# What a Gram of a job is made of: an observation of each prompt at each step. A linear is solved once for all of them.
PROMPTS, STEPS = 100, 25
OBSERVATIONS = PROMPTS * STEPS
# Keys of an attention are made a multiple of so many for PyTorch: cuBLAS is slow with rows that do not begin at multiples of 16 bytes, as
# those of 4096 + 333 keys would.
ALIGNED = 8


class Layer:
    """The Hessian of a linear's inputs, and its pruning by it. One linear has one, whatever else reads the same inputs."""

    def __init__(self, width, device):
        self.hessian = torch.zeros(width, width, device=device)
        self.weight_sum = 0.0

    def observe(self, rows, alpha):
        """Takes tokens x width: the mean of alpha 2 x x^T over all observations so far, all of it in f32."""
        before = self.weight_sum
        self.weight_sum += alpha
        self.hessian *= before / self.weight_sum
        scaled = (2 * alpha / self.weight_sum) ** 0.5 * rows.float().t()
        self.hessian += scaled @ scaled.t()

    def prune(self, weight, ratio, damping=0.01):
        """Zeros the share `ratio` of each block of columns; what is kept makes up for it."""
        weight, hessian = weight.clone().float(), self.hessian.clone()
        dead = torch.diag(hessian) == 0
        hessian[dead, dead] = 1
        weight[:, dead] = 0
        width = weight.shape[1]
        torch.diagonal(hessian).add_(damping * torch.diag(hessian).mean())
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
        upper = torch.linalg.cholesky(inverse, upper=True)
        for start in range(0, width, BLOCK):
            end = min(start + BLOCK, width)
            columns = weight[:, start:end].clone()
            settled, errors = torch.zeros_like(columns), torch.zeros_like(columns)
            of_block = upper[start:end, start:end]
            scores = columns**2 / torch.diag(of_block) ** 2
            limit = torch.sort(scores.flatten())[0][int(scores.numel() * ratio)]
            goes = scores <= limit
            for at in range(end - start):
                column, pivot = columns[:, at], of_block[at, at]
                settled[:, at] = torch.where(goes[:, at], 0.0, column)
                errors[:, at] = (column - settled[:, at]) / pivot
                columns[:, at:] -= errors[:, at : at + 1] @ of_block[at : at + 1, at:]
            weight[:, start:end] = settled
            weight[:, end:] -= errors @ upper[start:end, end:]
        return weight


def seconds_of(work, device, rounds=5):
    """Of the fastest run after a first one, by the GPU's own clock where there is one."""
    work()
    fastest = float("inf")
    for _ in range(rounds):
        if device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            work()
            end.record()
            end.synchronize()
            fastest = min(fastest, start.elapsed_time(end) / 1000)
        else:
            start = time.perf_counter()
            work()
            fastest = min(fastest, time.perf_counter() - start)
    return fastest


def product_seconds(count, rows, inner, columns, dtype, device):
    """Of `count` products of rows x inner by inner x columns. The right factor lies as a linear's weight does."""
    left = torch.randn(count, rows, inner, device=device).to(dtype)
    right = torch.randn(count, columns, inner, device=device).to(dtype).transpose(1, 2)
    if count == 1:
        left, right = left[0], right[0]
    return seconds_of(lambda: left @ right, device)


def speedups(gram, solve):
    """How many times as long the published method takes for the observations and the solve of a linear: `published_over_ours_with_gram` of
    one observation, `published_over_ours_in_a_job` of as many as a job has, and of the solve without any, by our default
    (`published_over_seconds`) and by the published kind of solver (`published_over_obs_seconds`)."""
    published = solve["published_seconds"]
    found = {f"published_over_{key}": published / solve[key] for key in ["seconds", "obs_seconds"]}
    if gram is not None:
        for name, count in [("with_gram", 1), ("in_a_job", OBSERVATIONS)]:
            both = count * gram["published_seconds"] + published
            found[f"published_over_ours_{name}"] = both / (count * gram["seconds"] + solve["seconds"])
    return found


def aligned(count, rows, inner, columns):
    """The sizes of a product for PyTorch: those of an attention, of which there are several at a time, with rows that are aligned."""
    if count == 1:
        return count, rows, inner, columns
    return count, rows, *(-(-size // ALIGNED) * ALIGNED for size in [inner, columns])


def beside(times, tokens, device):
    """The times with ratios to what PyTorch takes, and `job`: the prompts, steps and observations of ratios `in_a_job`."""
    times["job"] = {"prompts": PROMPTS, "steps": STEPS, "observations": OBSERVATIONS}
    # TF32 is off by default, and reduced sums of bf16 are not.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    layers = {}
    for gram in times["grams"]:
        width = gram["width"]
        rows = torch.randn(tokens, width, device=device).to(torch.bfloat16)
        layer = layers[width] = Layer(width, device)
        # The first Hessian of a solve is that of one observation in f32, as here; more would only repeat it.
        gram["published_seconds"] = seconds_of(lambda: layer.observe(rows, 1.0), device)
        for dtype in ["bfloat16", "float32"]:
            product = product_seconds(1, width, tokens, width, getattr(torch, dtype), device)
            gram[f"over_{dtype}_product"] = gram["seconds"] / product
        gram["published_over_ours"] = gram["published_seconds"] / gram["seconds"]
    for solve in times["solves"]:
        rows, width = solve["rows"], solve["width"]
        product = product_seconds(1, rows, width, width, torch.float32, device)
        rate = 2 * rows * width**2 / product
        # What any such solve takes: three factors with their inverses, and 20 products. A GPU makes 21, and plans count a processor's 22.
        solve["over_its_arithmetic"] = solve["seconds"] * rate / (3 * width**3 + 40 * rows * width**2)
        if width not in layers:
            layers[width] = Layer(width, device)
            layers[width].observe(torch.randn(tokens, width, device=device).to(torch.bfloat16), 1.0)
        weight = torch.randn(rows, width, device=device)
        solve["published_seconds"] = seconds_of(lambda: layers[width].prune(weight, 0.5), device, rounds=1)
        grams = [gram for gram in times["grams"] if gram["width"] == width]
        solve.update(speedups(grams[-1] if grams else None, solve))
    for block in times["blocks"]:
        sizes = [[product[key] for key in ["count", "rows", "inner", "columns"]] for product in block["products"]]
        seconds = [product_seconds(*aligned(*of), torch.bfloat16, device) for of in sizes]
        block["products_seconds"] = sum(seconds)
        # Without attentions, whose scores PyTorch writes to memory here and obsdiff does not.
        block["linears_seconds"] = sum(took for took, of in zip(seconds, sizes) if of[0] == 1)
        block["operations"] = sum(2 * count * rows * inner * columns for count, rows, inner, columns in sizes)
        for kind in ["products", "linears"]:
            block[f"of_its_{kind}_rate"] = block[f"{kind}_seconds"] / block["seconds"]
        del block["products"]
    return times


if __name__ == "__main__":
    device = sys.argv[3] if len(sys.argv) > 3 else "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"PyTorch {torch.__version__}, for CUDA {torch.version.cuda}, sees no GPU")
    times = json.loads(Path(sys.argv[2]).read_text())
    print(json.dumps(beside(times, int(sys.argv[1]), device)))
