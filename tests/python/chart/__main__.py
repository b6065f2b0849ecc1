"""Renders the chart, checks what comes out, and sees that mistakes are refused. See tests/chart."""

import argparse
import copy
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

import yaml
from cases import ACCEPTED, LEAST, LOCKED, PLAIN, PROMPTS, PROMPTS_CLAIM, REFUSED_FILES, REFUSED_OBJECTS, REFUSED_VALUES, changed
from effects import check_effects
from elsewhere import COMPOSE, SLURM, check_compose, check_script, check_task, check_task_ends, compose, task
from objects import Refused, check_object, need
from plans import OBSDIFF, check_plan
from pods import check_job, check_pod, check_restricted, references
from table import readme_with, table
from wiring import check_wiring

DEPLOY = pathlib.Path("deploy")
CHART = DEPLOY / "chart"
PLAIN_FILE = DEPLOY / "kubernetes.yaml"
README = DEPLOY / "README.md"
CHART_PAGE = CHART / "README.md"
RUNTIME = DEPLOY / "kubeflow" / "cluster-training-runtime.yaml"
# What the runtime names of the namespace of its jobs.
RUNTIME_PRESENT = {"model", "output", "obsdiff-job", "obsdiff-token"}
RELEASE = "obsdiff"
HEADER = """\
# One job, as the chart renders it with deploy/README.md's values for plain YAML. Made by tests/chart --write: change the chart instead.
"""


def render(values, *flags):
    """What helm makes of the chart, or what it says against the values."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        command = [os.environ["HELM"], "template", RELEASE, str(CHART), "--namespace", "images", "--values", file.name, *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Refused(done.stderr)
    return done.stdout


def documents(text):
    found = [document for document in yaml.safe_load_all(text) if document is not None]
    need(found, "nothing is rendered")
    return found


def existing(values):
    """What the values say is there already: names that no rendered object has to have."""
    names = {"bucket", "prompts"}
    for section in values.values():
        if isinstance(section, dict):
            names |= {name for key, name in section.items() if key.startswith("existing") and name}
    return names


def check_all(found, present):
    """Checks objects, alone and together."""
    made = {(document["kind"], document["metadata"]["name"]) for document in found}
    need(len(made) == len(found), "two objects have the same kind and name")
    pods = []
    for document in found:
        for name, spec in check_object(document):
            check_job(name, spec)
            pods.append(spec["template"]["spec"])
        if document["kind"] == "Pod":
            check_pod(document["metadata"]["name"], document)
            pods.append(document["spec"])
    # cert-manager makes the secret that a certificate names.
    made |= {("Secret", document["spec"]["secretName"]) for document in found if document["kind"] == "Certificate"}
    for pod in pods:
        for kind, name in references(pod):
            need((kind, name) in made or name in present, f"there is no {kind} {name}")
    if not any(document["kind"] == "ClusterTrainingRuntime" for document in found):
        check_wiring(found, pods)
    return pods


def documented():
    """The helm install commands that the pages and the examples show, each on one line."""
    texts = [pathlib.Path("README.md").read_text(), README.read_text(), *(example.read_text() for example in (DEPLOY / "examples").glob("*.yaml"))]
    lines = [line for text in texts for line in text.replace("\\\n", " ").splitlines()]
    commands = [line.lstrip("# ") for line in lines if line.lstrip("# ").startswith("helm install ")]
    need(len(commands) == len(texts), f"{len(texts)} files show {len(commands)} commands")
    return commands


def check_command(command):
    """Checks what a helm install command makes. Its prompts are the shipped ones."""
    words = shlex.split(command.replace("=prompts.txt", "=tests/assets/shapes-prompts.txt"))
    done = subprocess.run([os.environ["HELM"], "template", *words[2:]], capture_output=True, text=True, check=False)
    need(done.returncode == 0, f"{command}: {done.stderr}")
    check_all(documents(done.stdout), {"model", "models"})


def check_chart_page():
    """Checks the pod that the chart's page shows, and that its values are those of a case."""
    pod, values = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", CHART_PAGE.read_text(), re.DOTALL)]
    check_object(pod)
    check_restricted("the pod of the page", pod["spec"], writes=True)
    need(values.items() <= PROMPTS_CLAIM.items(), f"{CHART_PAGE}: shows other values than the case")


def check_scaling():
    """With kind Job the number of workers may change: nothing of their Job that Kubernetes lets nobody change depends on it."""
    fixed = []
    for replicas in (2, 8):
        found = documents(render({**LEAST, "kind": "Job", "worker": {"replicas": replicas}}))
        (job,) = [each for each in found if each["metadata"]["name"] == f"{RELEASE}-worker"]
        fixed.append({key: value for key, value in job["spec"].items() if key not in ("parallelism", "backoffLimit")})
    need(fixed[0] == fixed[1], "kind Job: an upgrade with other worker.replicas would be refused")


def check_refused(what, wanted, attempt):
    try:
        attempt()
    except Refused as refused:
        need(wanted in str(refused), f"{what}: is refused with {refused}, in which {wanted!r} is missing")
        return
    raise Refused(f"{what}: is accepted")


def check_mistakes(rendered):
    """Sees that mistakes are refused: in values, in rendered objects, and in the files for other places. Gives their number."""
    flux = DEPLOY / "examples" / "flux.1-dev-4-nodes.yaml"
    if OBSDIFF.exists():
        whole = changed(yaml.safe_load(flux.read_text()), "job.file", '[model]\ndtype = "bf16"\n')
        check_refused(f"{flux} in one package", "give packages.count = 2", lambda: check_plan(flux, whole, flux.read_text()))
    for path, value, wanted in REFUSED_VALUES:
        values = changed(LEAST, path, value)
        check_refused(f"{path}={value}"[:100], wanted, lambda values=values: render(values))
    for kind, path, value, wanted in REFUSED_OBJECTS:
        # The first case that renders this kind.
        case = next(case for case in ("plain", "everything", "runtime") if any(each["kind"] == kind for each in rendered[case]))
        found = copy.deepcopy(rendered[case])
        spoil(next(document for document in found if document["kind"] == kind), path, value)
        present = existing(ACCEPTED[case]) if case in ACCEPTED else RUNTIME_PRESENT
        check_refused(f"{kind} {path}={value}", wanted, lambda found=found, present=present: check_all(found, present))
    for file, path, value, wanted in REFUSED_FILES:
        read, check = {"compose": (compose, check_compose), "task": (task, check_task)}[file]
        document = read()
        spoil(document, path, value)
        check_refused(f"{file} {path}={value}", wanted, lambda document=document, check=check: check(document))
    check_refused("a script", "syntax error", lambda: check_script("slurm", SLURM.read_text().replace("done", "", 1)))
    return len(REFUSED_VALUES) + len(REFUSED_OBJECTS) + len(REFUSED_FILES) + 1


def spoil(inner, path, value):
    """Puts another value at a path, or removes what is there where the value is None."""
    *folders, name = [int(part) if part.isdigit() else part for part in path.split(".")]
    for folder in folders:
        inner = inner[folder]
    if value is None:
        del inner[name]
    else:
        inner[name] = value


def write_rendered(folder, name, found, pods):
    """Leaves the objects of a case, and the arguments and job of its pods, which the command itself has to accept."""
    folder = write_arguments(folder, name, [container["args"] for pod in pods for container in pod["containers"]])
    (folder / "objects.yaml").write_text(yaml.safe_dump_all(found))
    for document in found:
        if document["kind"] == "ConfigMap":
            (folder / "job.toml").write_text(document["data"]["job.toml"])


def write_arguments(folder, name, arguments):
    folder = folder / name
    folder.mkdir(parents=True)
    (folder / "arguments.json").write_text(json.dumps(arguments))
    return folder


def write_pods(folder, values):
    """Pods as JobSet's and Job's controllers would make them of the chart: coordinator.yaml, with what it reads, and worker.yaml."""
    found = documents(render(values))
    check_all(found, existing(values))
    streams = {"coordinator": [d for d in found if d["kind"] in ("ConfigMap", "Secret")], "worker": []}
    (job_set,) = [document for document in found if document["kind"] == "JobSet"]
    for job in job_set["spec"]["replicatedJobs"]:
        template = job["template"]["spec"]["template"]
        for index in range(job["template"]["spec"]["completions"]):
            name = f"{job_set['metadata']['name']}-{job['name']}-0-{index}"
            metadata = {**template["metadata"], "name": name}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {**template["spec"], "hostname": name}}
            streams[job["name"]].append(pod)
    for name, stream in streams.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump_all(stream))


def main():
    parser = argparse.ArgumentParser(prog="tests/chart")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--rendered", type=pathlib.Path)
    parser.add_argument("--pods", nargs=2, type=pathlib.Path)
    options = parser.parse_args()
    if options.pods:
        values, folder = options.pods
        write_pods(folder, yaml.safe_load(values.read_text()))
        return

    cases, planned = dict(ACCEPTED), 0
    for example in sorted((DEPLOY / "examples").glob("*.yaml")):
        values = yaml.safe_load(example.read_text())
        planned += check_plan(example, values, example.read_text())
        # By --set-file, as each example says.
        values["job"]["prompts"] = PROMPTS
        cases[example.stem] = values
    need(len(cases) > len(ACCEPTED), "there is no example")
    objects, rendered = 0, {}
    for name, values in cases.items():
        try:
            found = documents(render(values))
            pods = check_all(found, existing(values))
        except Refused as refused:
            raise Refused(f"{name}: {refused}") from None
        objects += len(found)
        rendered[name] = found
        if options.rendered:
            write_rendered(options.rendered, name, found, pods)
    rendered["locked"] = documents(render(LOCKED))
    check_refused("IPC_LOCK", "restricted forbids", lambda: check_all(rendered["locked"], existing(LOCKED)))
    effects = check_effects(rendered)
    # Two renderings of the same values differ in nothing, as no random token is made.
    plain = HEADER + render(PLAIN, "--skip-tests")
    need(plain == HEADER + render(PLAIN, "--skip-tests"), "two renderings differ")
    need(not [each for each in documents(plain) if each["kind"] == "Pod"], f"{PLAIN_FILE}: has the pod of the test")
    check_chart_page()
    check_scaling()
    for command in documented():
        check_command(command)

    found = documents(RUNTIME.read_text())
    pods = check_all(found, RUNTIME_PRESENT)
    objects += len(found)
    rendered["runtime"] = found
    commands = check_compose(compose())
    check_task(task())
    check_task_ends(task())
    check_script(str(SLURM), SLURM.read_text())
    if options.rendered:
        write_rendered(options.rendered, RUNTIME.stem, found, pods)
        write_arguments(options.rendered, COMPOSE.stem, commands)
    mistakes = check_mistakes(rendered)

    readme = readme_with(README.read_text(), table((CHART / "values.yaml").read_text()))
    for file, wanted in ((PLAIN_FILE, plain), (README, readme)):
        if options.write:
            file.write_text(wanted)
        need(file.exists() and file.read_text() == wanted, f"{file}: is not what tests/chart --write makes of the chart")
    lint = [os.environ["HELM"], "lint", "--strict", "--quiet", str(CHART), "--values", "-"]
    subprocess.run(lint, input=yaml.safe_dump(LEAST), text=True, check=True)
    need(planned or not OBSDIFF.exists(), "no example is planned")
    plans = f"{planned} jobs fit their workers" if OBSDIFF.exists() else f"no job is planned, as {OBSDIFF} is not there"
    print(f"chart: {objects} objects of {len(cases)} sets of values are valid, {effects} values show, {mistakes} mistakes are refused, {plans}")


try:
    main()
except Refused as refused:
    sys.exit(f"tests/chart: {refused}")
