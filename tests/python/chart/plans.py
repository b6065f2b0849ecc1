"""Whether the jobs of the chart's examples fit the GPUs of their workers, as `obsdiff plan` says of the published sizes of their models."""

import pathlib
import re
import subprocess
import tomllib

from objects import Refused, need

OBSDIFF = pathlib.Path("target/release/obsdiff")
PUBLISHED = pathlib.Path("tests/assets/published")
# What the examples' comments say of their GPUs.
GPU = re.compile(r"a GPU of (\d+) GB")
# The keys that name files, which are not there.
PLACES = {"model.path", "calibration.prompts", "output.path"}


def model_of(example):
    """The published transformer whose name an example has; none for that of the tests."""
    names = [folder for folder in PUBLISHED.iterdir() if example.stem.startswith(f"{folder.name}-")]
    return max(names, key=lambda folder: len(folder.name), default=None)


def plan_command(example, values, text):
    """The command that plans an example's job on the GPU that its comment says; none where there is no GPU or no published model."""
    model = model_of(example)
    if model is None or values["worker"].get("device") != "cuda":
        return None
    found = GPU.search(text)
    need(found, f"{example}: its comment does not say which GPU it takes")
    command = [str(OBSDIFF), "plan", str(model / "config.json"), f"--device-memory={found[1]}GB"]
    for section, keys in tomllib.loads(values["job"]["file"]).items():
        command += [f"--set={section}.{key}={value}" for key, value in keys.items() if f"{section}.{key}" not in PLACES]
    return command


def check_plan(example, values, text):
    """Refuses an example whose job does not fit. Gives the number of jobs that were planned."""
    command = plan_command(example, values, text)
    if command is None or not OBSDIFF.exists():
        return 0
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refused(f"{example}: {done.stderr}")
    return 1
