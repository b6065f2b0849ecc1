"""Runs what `tests/gpu pack` has packed on a GPU, and writes what it finds.

  python gpu.py FOLDER OUT.json [--small]

PyTorch, where it is installed, brings the CUDA libraries and tells the rates that obsdiff is held to. --small takes sizes of
observations and linears that a driver in host memory can work with; the shipped pipelines are too much for it.
"""

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

folder, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
small = sys.argv[3:] == ["--small"]
# Steps and prompts of a calibration; tokens and widths of observations; rows and columns of linears.
STEPS, PROMPTS = (1, 1) if small else (10, 16)
TOKENS, WIDTHS, LINEARS = (40, [96], [(48, 96)]) if small else (4096, [1536, 6144, 12288], [(1536, 6144), (3072, 12288)])
LIMIT = 480
began = time.monotonic()
found = {"machine": {"processor": platform.processor() or platform.machine()}, "failed": []}

try:
    import torch
except ImportError:
    torch = None


def libraries():
    """Folders with the CUDA libraries that PyTorch has brought, and those that are set already."""
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    if torch is not None:
        packages = Path(torch.__file__).parent.parent / "nvidia"
        folders += sorted(str(path) for path in packages.glob("*/lib"))
    return ":".join(path for path in folders if path)


environment = {**os.environ, "LD_LIBRARY_PATH": libraries(), "OBSDIFF_GOLDENS": str(folder / "goldens")}


def command(*arguments, limit=120, **settings):
    left = LIMIT - (time.monotonic() - began)
    if left <= 0:
        raise TimeoutError("there was no time left for it")
    done = subprocess.run(
        [str(argument) for argument in arguments],
        cwd=folder,
        env={**environment, **settings},
        capture_output=True,
        text=True,
        timeout=min(limit, left),
    )
    if done.returncode != 0:
        raise RuntimeError(f"exit code {done.returncode}: {(done.stderr + done.stdout)[-2000:]}")
    return done.stdout


def step(name):
    """Does a step now, and writes what it returns or why it failed."""

    def run(body):
        start = time.monotonic()
        try:
            found[name] = body()
        except Exception as error:
            found[name] = {"error": str(error)}
            found["failed"].append(name)
        print(f"{name}: {time.monotonic() - start:.0f} s, {'failed' if name in found['failed'] else 'ok'}", flush=True)
        out.write_text(json.dumps(found, indent=2) + "\n")

    return run


def passed(output):
    """How many tests a program says have passed; all of them."""
    counted = re.search(r"test result: ok\. (\d+) passed; 0 failed", output)
    if not counted or counted[1] == "0":
        raise RuntimeError(output[-2000:])
    return {"passed": int(counted[1])}


@step("gpu")
def _():
    try:
        query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        return command("nvidia-smi", *query, limit=20).strip()
    except FileNotFoundError:
        return "no nvidia-smi"


@step("suite of devices")
def _():
    return passed(command(folder / "device", "--skip", "in_host_memory", "--test-threads", "1", OBSDIFF_DEVICE="cuda"))


@step("operations of blocks")
def _():
    return passed(command(folder / "operations", "ops::tests::device", "--test-threads", "1", OBSDIFF_DEVICE="cuda"))


@step("group of one by NCCL")
def _():
    test = "collective::nccl::tests::a_group_of_one_is_formed_and_left_by_nccl_itself"
    return passed(command(folder / "collectives", test, "--exact", "--nocapture", OBSDIFF_NCCL_FOUND="yes"))


def pruned(model, device, number):
    """Prunes a shipped pipeline: the digest of its transformer and what the run has measured."""
    path = folder / f"{model}-{device}-{number}"
    job = folder / "job.toml"
    job.write_text(
        f"""
[model]
path = "{model}"
[sparsity]
pattern = "unstructured"
ratio = 0.5
allocation = "{'uniform' if small else 'global'}"
[calibration]
prompts = "shapes-prompts.txt"
count = {PROMPTS}
steps = {STEPS}
height = 32
width = 32
max_sequence_length = 24
[evaluation]
count = {2 if small else 8}
[output]
path = "{path}"
"""
    )
    start = time.monotonic()
    said = command(folder / "obsdiff", "run", job, "--json", "--quiet", "--device", device)
    seconds = time.monotonic() - start
    digest = hashlib.sha256()
    for file in sorted((path / "transformer").glob("*.safetensors")):
        digest.update(file.read_bytes())
    summary = json.loads(said)
    return {
        "digest": digest.hexdigest(),
        "seconds": seconds,
        "zeros": summary["zeros"],
        "error": summary["record"]["measured"]["held_out"]["relative_error"],
    }


for model in ["shapes-sd3", "shapes-flux"]:

    @step(model)
    def _():
        cpu, first, second = pruned(model, "cpu", 1), pruned(model, "cuda", 1), pruned(model, "cuda", 2)
        if first["digest"] != second["digest"]:
            raise RuntimeError(f"two runs on the GPU differ: {first}, {second}")
        if cpu["zeros"] != first["zeros"] or abs(first["error"] / cpu["error"] - 1) > 0.05:
            raise RuntimeError(f"the GPU's result is not the processor's: {first}, {cpu}")
        return {"cpu": cpu, "cuda": first}


def seconds_of(work):
    """Of the fastest of ten, by the GPU's own clock."""
    fastest = float("inf")
    for _ in range(10):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        fastest = min(fastest, start.elapsed_time(end) / 1000)
    return fastest


def product_rate(rows, inner, columns, dtype):
    """Operations of a product in a second, by PyTorch."""
    left = torch.randn(rows, inner, device="cuda", dtype=dtype)
    right = torch.randn(inner, columns, device="cuda", dtype=dtype)
    left @ right
    return 2 * rows * inner * columns / seconds_of(lambda: left @ right)


@step("times")
def _():
    widths = ",".join(str(width) for width in WIDTHS)
    linears = ",".join(f"{rows}x{width}" for rows, width in LINEARS)
    times = json.loads(command(folder / "device_times", "cuda", TOKENS, widths, linears, limit=150))
    if torch is None or not torch.cuda.is_available():
        return times
    # TF32 is off by default, and reduced sums of bf16 are not.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    for gram in times["grams"]:
        n = gram["width"]
        for dtype in ["bfloat16", "float32"]:
            gram[f"over_{dtype}_product"] = gram["seconds"] * product_rate(n, TOKENS, n, getattr(torch, dtype)) / (2 * TOKENS * n * n)
    for solve in times["solves"]:
        rows, n = solve["rows"], solve["width"]
        solve["over_its_arithmetic"] = solve["seconds"] * product_rate(rows, n, n, torch.float32) / (3 * n**3 + 40 * rows * n**2)
    return times


@step("memcheck")
def _():
    try:
        arguments = ["--tool", "memcheck", "--error-exitcode", "9", folder / "device", "--skip", "in_host_memory", "--test-threads", "1"]
        return passed(command("compute-sanitizer", *arguments, limit=150, OBSDIFF_DEVICE="cuda"))
    except FileNotFoundError:
        return "no compute-sanitizer"


found["seconds"] = time.monotonic() - began
out.write_text(json.dumps(found, indent=2) + "\n")
sys.exit(1 if found["failed"] else 0)
