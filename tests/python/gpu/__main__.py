"""Runs what `tests/gpu pack` has packed on a GPU, and writes what it finds.

  python FOLDER/gpu FOLDER OUT.json [--small] [--seconds SECONDS]

OUT.json is written again after every step, and whatever happens it is whole; `report.py` says what is in it. This ends with 1 where a step
failed. A step lacks something (`missing`) where this machine has not got what it needs; but a GPU and its libraries are what this is for:
where these are not there, the step that looks for them has failed.

PyTorch, where it is installed, brings the CUDA libraries and gives the rates that obsdiff is compared with. --small takes sizes of
observations, linears and blocks that a driver in host memory can work with; the shipped pipelines are cut short for it. --seconds is for all steps
together, 480 otherwise; the limit of each goes with it.
"""

import argparse
import hashlib
import json
import re
from pathlib import Path

import png
from machine import Machine
from programs import Failed, Missing
from report import Report
from shares import shares

USUAL_SECONDS = 480
parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("out", type=Path)
parser.add_argument("--small", action="store_true")
parser.add_argument("--seconds", type=float, default=USUAL_SECONDS)
arguments = parser.parse_args()
small = arguments.small
# Of a calibration: steps and prompts. Of observations: tokens and widths. Of linears: rows and columns. Of blocks: the transformer,
# pictures of a call, latent pixels on a side and text tokens, as a calibration with guidance at 1024 x 1024 pixels has them. SD3 has an odd
# number of keys by that, which published.py rounds up for PyTorch.
STEPS, PROMPTS = (1, 1) if small else (10, 16)
TOKENS, WIDTHS, LINEARS = (40, [96], [(48, 96)]) if small else (4096, [1536, 6144, 12288], [(1536, 6144), (3072, 12288)])
BLOCKS = (
    [("shapes-sd3/transformer", 2, 8, 5), ("shapes-flux/transformer", 1, 8, 5)]
    if small
    else [("published/sd3-medium", 2, 128, 333), ("published/flux.1-dev", 1, 128, 512)]
)
# What of a pipeline is not pruned.
SKIPPED = ["*proj*", "*transformer_blocks.[1-9].*", "*.ff*", "*add_*", "*.to_out.*"] if small else []

report = Report(arguments.out.resolve(), arguments.seconds, USUAL_SECONDS)
machine = Machine(arguments.folder.resolve())
report.machine = machine.described()


def ran(program, *arguments, **settings):
    """A program that has ended, within the time that is left for the step."""
    return machine.run(program, [str(argument) for argument in arguments], report.left(), **settings)


@report.step("programs", 40)
def _():
    # A machine may lack what they are linked to, or have an older libc.
    started = {"obsdiff": ran("obsdiff", "--version").output().strip()}
    for name in ["device", "operations", "collectives"]:
        started[name] = ran(name, "--list").output().count(": test\n")
    usage = ran("device_times")
    if "device_times DEVICE TOKENS" not in usage.errors:
        raise usage.failed()
    return started


@report.step("libraries", 40)
def _():
    return machine.look(report.left)


@report.step("gpu", 20)
def _():
    query = ["--query-gpu=name,driver_version,memory.total,compute_mode,persistence_mode", "--format=csv,noheader"]
    return {"nvidia-smi": ran("nvidia-smi", *query).output().strip()}


# What only a driver in host memory can be asked is left out.
SUITE = ["--skip", "in_host_memory", "--show-output", "--test-threads", "2"]


def goldens(said):
    """What each golden is compared by, in the words of the test; fails where one is not compared."""
    folder = machine.folder / "goldens"
    names = sorted(path.name for path in (folder / "transformers").iterdir())
    names += sorted(path.name.removesuffix(".safetensors") for path in (folder / "solver").iterdir())
    compared = {}
    for name in names:
        oracle = name.startswith("admm-")
        # The oracle's numbers are held to its error, all others to what they are.
        figures = r"[\d.]+ of the oracle's error.*" if oracle else r"(?:output|zeros) .*"
        found = re.findall(rf"^{re.escape(name.removeprefix('admm-'))}: ({figures})$", said, re.MULTILINE)
        if found:
            compared[name] = found
    left = [name for name in names if name not in compared]
    if left or not names:
        raise Failed(f"these goldens were not compared: {', '.join(left) or 'there are none'}", goldens=compared)
    return compared


@report.step("suite of devices and goldens", 200 if small else 120)
def _():
    machine.needs_gpu()
    ended = ran("device", *SUITE, OBSDIFF_DEVICE="cuda")
    # Goldens that were compared are kept even where a test failed.
    try:
        compared, left = goldens(ended.said), None
    except Failed as failed:
        compared, left = failed.found["goldens"], failed
    report.keep("suite of devices and goldens", {"goldens": compared})
    passed = ended.tests()
    if left is not None:
        raise left
    return {"passed": passed}


@report.step("operations of blocks", 60)
def _():
    machine.needs_gpu()
    ended = ran("operations", "ops::tests::device", "cuda::tests", "--test-threads", "1", OBSDIFF_DEVICE="cuda")
    return {"passed": ended.tests()}


@report.step("groups of one by NCCL", 40)
def _():
    machine.needs_gpu()
    machine.needs("libnccl.so.2")
    # They are formed, sum, and are left in good order and by an abort, which revokes first.
    ended = ran("collectives", "collective::nccl::tests::a_group_of_one", OBSDIFF_NCCL_FOUND="yes")
    return {"passed": ended.tests()}


@report.step("selftest", 60)
def _():
    machine.needs_gpu()
    ended = ran("obsdiff", "selftest", "--device", "cuda", "--json")
    found = ended.object()
    if not found["checks"]:
        raise Failed("no check was made", **found)
    off = [check["what"] for check in found["checks"] if check["off"] is None or not check["off"] <= check["limit"]]
    if ended.code != 0 and not off and "libnccl.so.2" in machine.lacks:
        raise Missing(machine.lacks["libnccl.so.2"], **found)
    if ended.code != 0 or off:
        raise Failed(f"these checks are off: {'; '.join(off)}" if off else str(ended.failed()), **found, error=ended.last())
    return found


def times(*arguments):
    machine.needs_gpu()
    return ran("device_times", "cuda", *arguments).object()


def say_of_gram(gram):
    """Gives the time of an observation, of each part of it alone and of the fastest panels and blocks, over that of its whole product."""
    parts = gram.get("parts") or {}
    whole = parts.get("whole_product_seconds")
    if not whole:
        return
    of = f"Gram of {gram['width']}"
    report.say(f"{of} over the whole product", gram["seconds"] / whole)
    for part in ["judge", "products", "adds"]:
        report.say(f"{of}, its {part} alone, over the whole product", parts[f"{part}_seconds"] / whole)
    if gram["tuning"]:
        best = min(gram["tuning"], key=lambda tried: tried["seconds"])
        by = f"by panels of {best['rows']} rows and {best['blocks']} blocks, the fastest"
        report.say(f"{of} {by}, over the whole product", best["seconds"] / whole)


@report.step("times", 100)
def _():
    widths = ",".join(str(width) for width in WIDTHS)
    found = times(TOKENS, widths, ",".join(f"{rows}x{width}" for rows, width in LINEARS))
    for gram in found["grams"]:
        say_of_gram(gram)
    return found


for model, *sizes in BLOCKS:

    @report.step(f"times of blocks of {model}", 60)
    def _():
        return times(TOKENS, "-", "-", ":".join([str(machine.folder / model), *map(str, sizes)]))


@report.step("shares of product rates", 10)
def _():
    machine.needs_gpu()
    of_steps = [found for name, found in report.found.items() if name.startswith("times")]
    measured = {key: [one for found in of_steps for one in found.get(key, [])] for key in ["grams", "solves", "blocks"]}
    measured |= {key: report.found.get("times", {}).get(key) for key in ["hardware", "rates"]}
    # In this form the command reads them: what this prints takes the place of coordinator/command/src/gpu_shares.json.
    return shares(measured)


@report.step("times beside PyTorch's", 120)
def _():
    machine.needs_gpu()
    if not machine.has_torch():
        raise Missing("PyTorch is not installed for the Python that runs this: PYTHON names another one")
    of_steps = [found for name, found in report.found.items() if name.startswith("times")]
    measured = {key: [one for found in of_steps for one in found.get(key, [])] for key in ["grams", "solves", "blocks"]}
    if not any(measured.values()):
        raise Failed("there are no times to hold to PyTorch's")
    file = machine.folder / "times.json"
    file.write_text(json.dumps(measured))
    device = "cpu" if small else "cuda"
    beside = machine.python("published.py", [str(TOKENS), str(file), device], report.left()).object()
    for gram in beside["grams"]:
        if gram["width"] >= 6144:
            report.reach(f"Gram of {gram['width']} over the whole bf16 product", gram["over_bfloat16_product"], most=0.65)
    for solve in beside["solves"]:
        name = f"{solve['rows']} x {solve['width']}"
        report.reach(f"solve of {name} over its arithmetic", solve["over_its_arithmetic"], most=1.6)
        report.say(f"published solve of {name} over ours by OBS, the same method", solve["published_over_obs_seconds"])
        report.say(f"published solve of {name} over ours by alternating directions with refinement", solve["published_over_seconds"])
        if "published_over_ours_in_a_job" in solve:
            job = beside["job"]
            grams = f"Gram of {job['observations']} observations, as of {job['prompts']} prompts by {job['steps']} steps,"
            report.reach(f"published {grams} and solve of {name} over ours", solve["published_over_ours_in_a_job"], least=5)
            report.say(f"published Gram of one observation and solve of {name} over ours", solve["published_over_ours_with_gram"])
    for block in beside["blocks"]:
        name = f"block {block['block']} of {block['model']}"
        report.reach(f"{name}, of its products' rate", block["of_its_products_rate"], least=0.6)
        report.say(f"{name}, of the rate of its linears' products alone", block["of_its_linears_rate"])
    return beside


def pruned(model, device, number):
    """Prunes a shipped pipeline: the digest of its transformer and what the run has measured."""
    path = machine.folder / f"{model}-{device}-{number}"
    job = machine.folder / "job.toml"
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
    before = report.left()
    summary = ran("obsdiff", "run", job, "--json", "--quiet", "--device", device).object()
    digest = hashlib.sha256()
    files = sorted((path / "transformer").glob("*.safetensors"))
    for file in files:
        digest.update(file.read_bytes())
    if not files:
        raise Failed(f"{path} holds no weights")
    return {
        "digest": digest.hexdigest(),
        "seconds": before - report.left(),
        "zeros": summary["zeros"],
        "weights": summary["weights"],
        "error": summary["record"]["measured"]["held_out"]["relative_error"],
    }


for model in ["shapes-sd3", "shapes-flux"]:

    @report.step(model, 150 if small else 90)
    def _():
        machine.needs_gpu()
        runs = {}
        for name, device, number in [("cuda", "cuda", 1), ("again", "cuda", 2), ("cpu", "cpu", 1)]:
            runs[name] = pruned(model, device, number)
            report.keep(model, runs)
        first, again, cpu = runs["cuda"], runs["again"], runs["cpu"]
        if first["digest"] != again["digest"]:
            raise Failed("two runs on the GPU give other bytes")
        # Where costs that are measured decide how much each linear loses, each may round otherwise.
        if abs(cpu["zeros"] - first["zeros"]) > (0 if small else 1e-3 * cpu["weights"]):
            raise Failed(f"{first['zeros']} zeros on the GPU, {cpu['zeros']} on the processor")
        if not abs(first["error"] / cpu["error"] - 1) <= 0.05:
            raise Failed(f"latents are off by {first['error']} on the GPU, {cpu['error']} on the processor")
        return runs


def sampled(model, device):
    """One picture of a shipped pipeline: its size and its levels."""
    path = machine.folder / f"{model}-{device}.png"
    prompt = ["--prompt", "a red circle on white", "--max-sequence-length", "24", "--steps", STEPS + 1]
    prompt += ["--height", "32", "--width", "32"]
    ended = ran("obsdiff", "sample", machine.folder / model, *prompt, "--quiet", "--device", device, "--out", path)
    ended.output()
    return png.read(path)


# In f32 sums are rounded elsewhere, which a level can show; a fault shows in many of them, or by a large difference.
MOST_OFF, MEAN_OFF = 4, 0.1

for model in ["shapes-sd3", "shapes-flux"]:

    @report.step(f"picture of {model}", 60)
    def _():
        machine.needs_gpu()
        (width, height, levels), of_processor = sampled(model, "cuda"), sampled(model, "cpu")
        if of_processor[:2] != (width, height):
            raise Failed(f"the picture has {width} x {height} pixels on the GPU, {of_processor[:2]} on the processor")
        off = [abs(a - b) for a, b in zip(levels, of_processor[2])]
        found = {
            "width": width,
            "height": height,
            "levels": len(set(levels)),
            "most_off": max(off),
            "mean_off": sum(off) / len(off),
        }
        if found["most_off"] > MOST_OFF or found["mean_off"] > MEAN_OFF:
            raise Failed(f"levels are off by {found['most_off']} of 255, by {found['mean_off']:.3f} on average", **found)
        return found


@report.step("memcheck", 150)
def _():
    machine.needs_gpu()
    ended = ran("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", machine.folder / "device", *SUITE, OBSDIFF_DEVICE="cuda")
    said = ended.said + ended.errors
    summary = re.findall(r"ERROR SUMMARY: .*", said)
    # As it says where it cannot watch this kind of machine.
    if "Device not supported" in said:
        raise Missing("compute-sanitizer does not support this machine's GPU", error=ended.last())
    if ended.code is None and not re.search(r"=+ (Invalid|Program hit)", said):
        finished = len(re.findall(r"^test \S+ \.\.\. ok$", said, re.MULTILINE))
        raise Missing(f"more time: {finished} tests passed without an error in {ended.seconds:.0f} s", passed=finished)
    return {"passed": ended.tests(), "summary": summary}


report.end()
