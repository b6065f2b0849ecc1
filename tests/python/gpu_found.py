"""Holds what `tests/gpu check` has found to what must be in it: every step, golden and figure.

  python gpu_found.py FOUND.json GOLDENS SHARES.json

Prints all that is wrong, and ends with 1 where something is.
"""

import json
import math
import sys
from pathlib import Path

# Steps, and which of them a machine without a GPU may lack something for.
STEPS = ["programs", "libraries", "suite of devices and goldens", "operations of blocks", "groups of one by NCCL", "selftest", "times", "shares of product rates"]
MODELS = ["shapes-sd3", "shapes-flux"]
STEPS += [f"times of blocks of {model}/transformer" for model in MODELS] + MODELS
STEPS += [f"picture of {model}" for model in MODELS]
MAY_LACK = {"gpu", "times beside PyTorch's", "memcheck"}
# At least so many tests are in each suite, and checks in the self-test.
TESTS = {"suite of devices and goldens": 30, "operations of blocks": 5, "groups of one by NCCL": 1}
CHECKS = 15

whole, goldens = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
found = whole["found"]
wrong = []


def holds(condition, what):
    if not condition:
        wrong.append(what)


def is_positive(number):
    return isinstance(number, (int, float)) and math.isfinite(number) and number > 0


for name, why in whole["failed"].items():
    wrong.append(f"{name} failed: {why}")
for name, why in whole["missing"].items():
    holds(name in MAY_LACK, f"{name} was not done: {why}")
for name in STEPS:
    holds(name in whole["ok"] or name in whole["failed"], f"{name} was not done")
ended = [*whole["ok"], *whole["failed"], *whole["missing"]]
holds(sorted(ended) == sorted({*STEPS, *MAY_LACK}), f"other steps were done: {ended}")
holds(whole["running"] is None, f"{whole['running']} has not ended")
for key in ["system", "libc", "python", "processor", "cores", "memory_bytes", "free_disk_bytes"]:
    holds(whole["machine"].get(key), f"nothing is said of the machine's {key}")

for name, least in TESTS.items():
    passed = found.get(name, {}).get("passed", 0)
    holds(passed >= least, f"{name}: {passed} tests passed, fewer than {least}")
names = {path.name for path in (goldens / "transformers").iterdir()}
names |= {path.stem for kind in ["admm", "nm", "unstructured"] for path in (goldens / "solver").glob(f"{kind}-*")}
compared = found.get("suite of devices and goldens", {}).get("goldens", {})
holds(len(names) > 10 and set(compared) == names, f"compared were {sorted(compared)}, and not {sorted(names)}")

checks = found.get("selftest", {}).get("checks", [])
holds(len(checks) >= CHECKS, f"the self-test made {len(checks)} checks")
for check in checks:
    off, limit = check.get("off"), check.get("limit")
    holds(is_positive(check.get("seconds")) and off is not None and 0 <= off <= limit, f"self-test: {check}")

times = found.get("times", {})
holds(len(times.get("grams", [])) == 1 and len(times.get("solves", [])) == 1, f"times: {times}")
for model in MODELS:
    blocks = found.get(f"times of blocks of {model}/transformer", {}).get("blocks", [])
    holds(len(blocks) == 2 and all(block.get("products") for block in blocks), f"blocks of {model}: {blocks}")
    times.setdefault("blocks", []).extend(blocks)
for timed in [*times.get("grams", []), *times.get("solves", []), *times.get("blocks", [])]:
    figures = [value for key, value in timed.items() if key.endswith("seconds")]
    holds(figures and all(map(is_positive, figures)), f"a time: {timed}")

# Each part of the two that is timed alone.
PARTS = {
    "grams": {"judge_seconds", "products_seconds", "adds_seconds", "whole_product_seconds"},
    "solves": {"factor_seconds", "inverse_seconds", "products_seconds", "copies_seconds"},
}
for kind, names in PARTS.items():
    for timed in times.get(kind, []):
        parts = timed.get("parts") or {}
        holds(set(parts) == names and all(map(is_positive, parts.values())), f"parts of a time: {timed}")

for timed in times.get("grams", []):
    holds(is_positive(timed.get("over_whole_product")), f"a Gram beside its whole product: {timed}")
said = [f"Gram of {timed.get('width')} over the whole product" for timed in times.get("grams", [])]
holds(all(what in whole["reached"] for what in said), f"of these nothing is said: {said}")

# What is there where PyTorch is: ratios, with those of a job, and what they are ratios of.
if "times beside PyTorch's" in whole["ok"]:
    torch = found.get("times beside PyTorch's", {})
    RATIOS = {
        "grams": ["published_seconds", "published_over_ours", "over_bfloat16_product", "over_float32_product"],
        "solves": [
            "over_its_arithmetic",
            "published_over_seconds",
            "published_over_obs_seconds",
            "published_over_ours_with_gram",
            "published_over_ours_in_a_job",
        ],
        "blocks": ["products_seconds", "linears_seconds", "of_its_products_rate", "of_its_linears_rate"],
    }
    for kind, names in RATIOS.items():
        listed = torch.get(kind, [])
        for name in names:
            holds(listed and all(is_positive(one.get(name)) for one in listed), f"{name} of {kind} beside PyTorch's: {listed}")
    job = torch.get("job", {})
    holds(job.get("observations", 0) == job.get("prompts", 0) * job.get("steps", 0) > 1, f"a job: {job}")
    bound = [what for what in whole["reached"] if f"{job.get('observations')} observations" in what]
    holds(bound and all(whole["reached"][what].get("at least") == 5 for what in bound), f"a job's ratio is held to nothing: {bound}")

# What can be copied over the command's own table.
shares, table = found.get("shares of product rates", {}), json.loads(Path(sys.argv[3]).read_text())
holds(shares.keys() == table.keys(), f"shares are {sorted(shares)}, and not {sorted(table)}")
holds(isinstance(shares.get("measured_on"), str) and shares.get("includes_memory") is True, f"shares: {shares}")
for kind in [kind for kind in table if isinstance(table[kind], dict)]:
    share = shares.get(kind, {})
    holds(share.keys() == table[kind].keys() and is_positive(share.get("share")), f"the share of {kind}: {share}")

for model in MODELS:
    # What a run has printed where it failed is none.
    runs = {name: run for name, run in found.get(model, {}).items() if isinstance(run, dict)}
    holds(set(runs) == {"cuda", "again", "cpu"}, f"{model}: runs were {sorted(runs)}")
    for name, run in runs.items():
        of = f"{model}, {name}: {run}"
        holds(set(run) >= {"digest", "seconds", "error", "zeros", "weights"}, of)
        holds(len(run["digest"]) == 64 and is_positive(run["seconds"]) and is_positive(run["error"]), of)
        holds(0 < run["zeros"] < run["weights"], of)
    digests = {run["digest"] for name, run in runs.items() if name != "cpu"}
    holds(len(digests) == 1, f"{model}: the GPU gave {sorted(digests)}")

for model in MODELS:
    picture = found.get(f"picture of {model}", {})
    holds(set(picture) >= {"width", "height", "levels", "most_off", "mean_off"}, f"a picture of {model}: {picture}")
    holds(picture.get("width", 0) * picture.get("height", 0) > 0 and picture.get("levels", 0) > 2, f"a picture of {model}: {picture}")

for line in wrong:
    print(f"tests/gpu: {line}", file=sys.stderr)
if not wrong:
    print(f"All {len(whole['ok'])} steps are ok, with {len(compared)} goldens, in {whole['seconds']:.0f} s")
sys.exit(1 if wrong else 0)
