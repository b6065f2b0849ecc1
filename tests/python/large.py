"""Compares a large run with what `obsdiff plan` predicted. See tests/large.

  python large.py PLAN.json PRUNING.json SECONDS
  python large.py --dry

PLAN.json is what `obsdiff plan --json` printed, PRUNING.json the run's pruning.json, and SECONDS how long the run took. It prints both, and
fails where the time of computing, which plan predicts, is off by more than a quarter in either direction, or the peak of the memory is over
its prediction. --dry tries that with runs that are made up.
"""

import json
import sys

# The share by which the time may be off.
TOLERANCE = 0.25

# The phases whose time plan predicts: those that compute. Others read and write files.
COMPUTING = ("forward", "gram", "solve", "refine")


def problems(predicted_seconds, seconds, predicted_bytes, peak_bytes):
    """What is wrong with a prediction, in words."""
    found = []
    low, high = predicted_seconds * (1 - TOLERANCE), predicted_seconds * (1 + TOLERANCE)
    if not low <= seconds <= high:
        found.append(
            f"the run computed for {seconds:.0f} s, {seconds / predicted_seconds:.2f} times the {predicted_seconds:.0f} s that plan predicts: "
            f"from {low:.0f} to {high:.0f} s is right"
        )
    if peak_bytes > predicted_bytes:
        over = peak_bytes / predicted_bytes - 1
        found.append(f"the peak of the memory, {mebibytes(peak_bytes)}, is {over:.1%} over the {mebibytes(predicted_bytes)} that plan predicts")
    return found


def mebibytes(count):
    return f"{count / 2**20:.0f} MiB"


def judged(plan, pruning, seconds):
    """The problems of a run, after its figures are printed."""
    (job,) = [count for count in plan["other_package_counts"] if count["of_job"]]
    measured = pruning["measured"]
    predicted_bytes = plan["memory"]["run_peak_bytes"] or plan["memory"]["peak_bytes"]
    for phase in measured["phases"]:
        if phase["seconds"] >= 0.1:
            print(f"{phase['phase']:<20} {phase['seconds']:8.1f} s, {phase['calls']} times")
    computing = sum(phase["seconds"] for phase in measured["phases"] if phase["phase"] in COMPUTING)
    print(f"{'computing':<20} {computing:8.1f} s, {job['seconds']:.1f} s predicted: {computing / job['seconds']:.2f} times")
    print(f"{'whole time':<20} {seconds:8.1f} s")
    print(f"{'peak of the memory':<20} {mebibytes(measured['peak_memory_bytes'])}, {mebibytes(predicted_bytes)} predicted")
    return problems(job["seconds"], computing, predicted_bytes, measured["peak_memory_bytes"])


def dry():
    """Judges runs whose problems are known."""
    plan = {
        "other_package_counts": [{"of_job": False, "seconds": 7.0}, {"of_job": True, "seconds": 200.0}],
        "memory": {"run_peak_bytes": None, "peak_bytes": 100 << 20},
    }
    of_workers = {**plan, "memory": {"run_peak_bytes": 150 << 20, "peak_bytes": 100 << 20}}
    slow, large = "1.26 times the 200 s", "2.0% over the 100 MiB"
    for what, seconds, mib, wanted in [
        (plan, 200, 99, []),
        (plan, 150, 100, []),
        (plan, 250, 100, []),
        (plan, 252, 100, [slow]),
        (plan, 148, 100, ["0.74 times"]),
        (plan, 200, 102, [large]),
        (plan, 252, 102, [slow, large]),
        (of_workers, 200, 102, []),
        (of_workers, 200, 153, ["2.0% over the 150 MiB"]),
    ]:
        times = {"forward": 40, "gram": 20, "solve": 40, "refine": seconds - 100, "export": 90}
        phases = [{"phase": phase, "calls": 3, "seconds": float(time)} for phase, time in times.items()]
        found = judged(what, {"measured": {"phases": phases, "peak_memory_bytes": mib << 20}}, seconds + 90)
        right = len(found) == len(wanted) and all(words in each for words, each in zip(wanted, found))
        if not right:
            sys.exit(f"large.py: {seconds} s and {mib} MiB are judged as {found} in place of {wanted}")
    print("large: 9 runs are judged right")


if __name__ == "__main__":
    if sys.argv[1:] == ["--dry"]:
        dry()
    else:
        texts = [open(name, encoding="utf-8").read() for name in sys.argv[1:3]]
        found = judged(*map(json.loads, texts), float(sys.argv[3]))
        if found:
            sys.exit("\n".join(f"error: {each}" for each in found))
