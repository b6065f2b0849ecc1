"""Runs what `tests/gpu pack` has packed on a GPU, and writes what it finds.

  python gpu.py FOLDER OUT.json [--small]

OUT.json is written after every step. `failed` names the steps that went wrong, `missing` those that this machine has not got what they
need for, `reached` holds the times to what they are meant to be. It ends with 1 where a step failed.

PyTorch, where it is installed, brings the CUDA libraries and tells the rates that obsdiff is held to. --small takes sizes of
observations, linears and blocks that a driver in host memory can work with; the shipped pipelines are cut short for it.
"""

import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

folder, out = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
small = sys.argv[3:] == ["--small"]
# Of a calibration: steps and prompts. Of observations: tokens and widths. Of linears: rows and columns. Of blocks: the transformer,
# pictures of a call, latent pixels on a side and text tokens, as a calibration with guidance at 1024 x 1024 pixels has them.
STEPS, PROMPTS = (1, 1) if small else (10, 16)
TOKENS, WIDTHS, LINEARS = (40, [96], [(48, 96)]) if small else (4096, [1536, 6144, 12288], [(1536, 6144), (3072, 12288)])
BLOCKS = (
    [("shapes-sd3/transformer", 2, 8, 5), ("shapes-flux/transformer", 1, 8, 5)]
    if small
    else [("published/sd3-medium", 2, 128, 333), ("published/flux.1-dev", 1, 128, 512)]
)
# What of a pipeline is not pruned.
SKIPPED = ["*proj*", "*transformer_blocks.[1-9].*", "*.ff*", "*add_*", "*.to_out.*"] if small else []
# Seconds of all steps together.
LIMIT = 480
began = time.monotonic()
deadline = began
found = {"machine": {"processor": platform.processor() or platform.machine()}, "failed": [], "missing": {}, "reached": {}}


class Missing(Exception):
    """What a step needs and this machine has not got."""


def libraries():
    """Folders with the CUDA libraries that PyTorch has brought, and those that are set already."""
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    torch = importlib.util.find_spec("torch")
    if torch is not None:
        folders += sorted(str(path) for path in (Path(torch.origin).parent.parent / "nvidia").glob("*/lib"))
    return ":".join(path for path in folders if path)


environment = {**os.environ, "LD_LIBRARY_PATH": libraries(), "OBSDIFF_GOLDENS": str(folder / "goldens")}


def command(*arguments, **settings):
    """What a program prints. It and all that it has started are ended where the step's time is over."""
    arguments = [str(argument) for argument in arguments]
    if "/" not in arguments[0] and shutil.which(arguments[0]) is None:
        raise Missing(f"{arguments[0]} is not installed")
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("there was no time left for it")
    child = subprocess.Popen(
        arguments,
        cwd=folder,
        env={**environment, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, errors = child.communicate(timeout=left)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        said, errors = child.communicate()
        raise TimeoutError(f"{Path(arguments[0]).name} was not done after {left:.0f} s: {(errors + said)[-2000:]}") from None
    if child.returncode != 0:
        raise RuntimeError(f"exit code {child.returncode}: {(errors + said)[-4000:]}")
    return said


def write():
    found["seconds"] = time.monotonic() - began
    out.write_text(json.dumps(found, indent=2) + "\n")


def step(name, limit):
    """Does a step now, within so many seconds, and writes what it returns, why it failed or what it lacks."""

    def run(body):
        global deadline
        start = time.monotonic()
        deadline = min(start + limit, began + LIMIT)
        try:
            found[name], word = body(), "ok"
        except Missing as missing:
            found["missing"][name], word = str(missing), f"missing: {missing}"
        except Exception as error:
            found[name], word = {"error": str(error)}, "failed"
            found["failed"].append(name)
        print(f"{name}: {time.monotonic() - start:.0f} s, {word}", flush=True)
        write()

    return run


def passed(output):
    """How many tests a program says have passed; all of them."""
    counted = re.search(r"test result: ok\. (\d+) passed; 0 failed", output)
    if not counted or counted[1] == "0":
        raise RuntimeError(output[-2000:])
    return {"passed": int(counted[1])}


SUITE = [folder / "device", "--skip", "in_host_memory", "--test-threads", "2" if small else "1"]


@step("gpu", 20)
def _():
    query = ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return command("nvidia-smi", *query).strip()


@step("suite of devices and goldens", 200 if small else 100)
def _():
    return passed(command(*SUITE, OBSDIFF_DEVICE="cuda"))


@step("operations of blocks", 60)
def _():
    return passed(command(folder / "operations", "ops::tests::device", "--test-threads", "1", OBSDIFF_DEVICE="cuda"))


@step("groups of one by NCCL", 40)
def _():
    # They are formed, sum, and are left in good order and by an abort, which revokes first.
    return passed(command(folder / "collectives", "collective::nccl::tests::a_group_of_one", "--nocapture", OBSDIFF_NCCL_FOUND="yes"))


@step("selftest", 60)
def _():
    return json.loads(command(folder / "obsdiff", "selftest", "--device", "cuda", "--json"))


@step("times", 150)
def _():
    widths = ",".join(str(width) for width in WIDTHS)
    linears = ",".join(f"{rows}x{width}" for rows, width in LINEARS)
    blocks = [":".join([str(folder / model), *map(str, sizes)]) for model, *sizes in BLOCKS]
    return json.loads(command(folder / "device_times", "cuda", TOKENS, widths, linears, *blocks))


def reached(what, value, most=None, least=None):
    """Holds a ratio to what it is meant to be."""
    met = value <= most if most is not None else value >= least
    limit = {"at most": most} if most is not None else {"at least": least}
    found["reached"][what] = {"value": value, **limit, "met": met}


@step("times beside PyTorch's", 120)
def _():
    times = found.get("times", {})
    if "grams" not in times:
        raise RuntimeError("the times are not there")
    if importlib.util.find_spec("torch") is None:
        raise Missing("PyTorch is not installed")
    file = folder / "times.json"
    file.write_text(json.dumps(times))
    beside = json.loads(command(sys.executable, folder / "published.py", TOKENS, file))
    for gram in beside["grams"]:
        if gram["width"] >= 6144:
            reached(f"Gram of {gram['width']} over the whole bf16 product", gram["over_bfloat16_product"], most=0.65)
    for solve in beside["solves"]:
        name = f"{solve['rows']} x {solve['width']}"
        reached(f"solve of {name} over its arithmetic", solve["over_its_arithmetic"], most=1.6)
        if "published_over_ours_with_gram" in solve:
            reached(f"published Gram and solve of {name} over ours", solve["published_over_ours_with_gram"], least=5)
    for block in beside["blocks"]:
        reached(f"block {block['block']} of {block['model']}, of its products' rate", block["of_its_products_rate"], least=0.6)
    return beside


def pruned(model, device, number):
    """Prunes a shipped pipeline: the digest of its transformer and what the run has measured."""
    path = folder / f"{model}-{device}-{number}"
    job = folder / "job.toml"
    rules = "".join(f'[[sparsity.rules]]\nmatch = "{linears}"\nskip = true\n' for linears in SKIPPED)
    job.write_text(
        f"""
[model]
path = "{model}"
[sparsity]
pattern = "unstructured"
ratio = 0.5
allocation = "{'uniform' if small else 'global'}"
{rules}[calibration]
prompts = "shapes-prompts.txt"
count = {PROMPTS}
steps = {STEPS}
height = 32
width = 32
max_sequence_length = 24
[evaluation]
count = {1 if small else 8}
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

    @step(model, 150 if small else 90)
    def _():
        cpu, first, second = pruned(model, "cpu", 1), pruned(model, "cuda", 1), pruned(model, "cuda", 2)
        if first["digest"] != second["digest"]:
            raise RuntimeError(f"two runs on the GPU differ: {first}, {second}")
        if cpu["zeros"] != first["zeros"] or abs(first["error"] / cpu["error"] - 1) > 0.05:
            raise RuntimeError(f"the GPU's result is not the processor's: {first}, {cpu}")
        return {"cpu": cpu, "cuda": first}


@step("memcheck", 150)
def _():
    return passed(command("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", *SUITE, OBSDIFF_DEVICE="cuda"))


write()
sys.exit(1 if found["failed"] else 0)
