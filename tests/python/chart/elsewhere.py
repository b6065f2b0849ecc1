"""Checks of the files for other places than Kubernetes: Compose, Slurm and SkyPilot. The command checks the arguments that they give."""

import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import tomllib
from urllib.parse import urlsplit

import yaml
from objects import Refused, check_file, need
from wiring import flags

DEPLOY = pathlib.Path("deploy")
COMPOSE = DEPLOY / "compose.yaml"
SLURM = DEPLOY / "slurm" / "obsdiff.sbatch"
TASK = DEPLOY / "skypilot" / "obsdiff.yaml"


def compose():
    return yaml.safe_load(COMPOSE.read_text())


def task():
    return yaml.safe_load(TASK.read_text())


def check_compose(document):
    """Checks the file by the Compose specification, and its services against the image, the shipped job and each other. Gives the
    commands that it has obsdiff run."""
    # Names that begin so are for the file itself.
    document = {key: value for key, value in document.items() if not key.startswith("x-")}
    check_file("compose", document)
    services = document["services"]
    built = [service for service in services.values() if "build" in service]
    need(len(built) == 1, f"compose: {len(built)} services build the image")
    stages, program = image(DEPLOY / built[0]["build"]["context"] / built[0]["build"]["dockerfile"])
    need(built[0]["build"]["target"] in stages, f"compose: the image has no stage {built[0]['build']['target']}")
    for name, service in services.items():
        need(service["image"] == built[0]["image"], f"compose: {name}: nothing builds the image {service['image']}")
        need(service.get("read_only") is True and service.get("cap_drop") == ["ALL"], f"compose: {name}: has more rights than it takes")
        for network in service["networks"]:
            need(network in document["networks"], f"compose: {name}: there is no network {network}")
        for other in service.get("depends_on", []):
            need(other in services, f"compose: {name}: there is no service {other}")
    coordinator, port = dialled(services)
    asked = coordinator["healthcheck"]["test"]
    need(asked[:2] == ["CMD", program], f"compose: the image has no program {asked[1]}")
    need(str(urlsplit(asked[3]).port) == port, "compose: the health check asks another port")
    check_job(coordinator)
    return [*(service["command"] for service in services.values()), asked[2:]]


def dialled(services):
    """The coordinator and its port, which all workers dial."""
    (name,) = [name for name, service in services.items() if service["command"][0] == "coordinator"]
    port = flags(services[name]["command"])["--listen"].rsplit(":", 1)[1]
    for worker, service in services.items():
        if worker != name:
            url = urlsplit(flags(service["command"])["--coordinator"])
            need((url.hostname, str(url.port)) == (name, port), f"compose: {worker}: dials {url.netloc}, but {name} listens on {port}")
            need(service["networks"] == services[name]["networks"], f"compose: {worker}: is in another network than {name}")
    return services[name], port


def check_job(coordinator):
    """Checks that the job and what it names lie in volumes, and only the output in one that can be written."""
    places = {}
    for volume in coordinator["volumes"]:
        source, target, *options = volume.split(":")
        places[target] = (DEPLOY / source, options)
    folder = pathlib.PurePosixPath(coordinator["working_dir"])

    def found(path):
        """Where a path of the container lies in the sources, and how it is mounted."""
        inside = folder / path
        for target, (source, options) in places.items():
            if inside.is_relative_to(target):
                return source / inside.relative_to(target), options
        raise Refused(f"compose: nothing is mounted at {inside}")

    file, _ = found(coordinator["command"][1])
    need(file.exists(), f"compose: there is no {file}")
    job = tomllib.loads(file.read_text())
    for path in (job["model"]["path"], job["calibration"]["prompts"]):
        source, options = found(path)
        need(source.exists() and options == ["ro"], f"compose: {path} is not there to be read")
    need(found(job["output"]["path"])[1] == [], f"compose: {job['output']['path']} cannot be written")


def image(dockerfile):
    """The stages of a Dockerfile, and the program that its images start."""
    text = dockerfile.read_text()
    (program,) = set(re.findall(r'^ENTRYPOINT \["([^"]+)"\]$', text, re.MULTILINE))
    return re.findall(r"^FROM .* AS (\w+)$", text, re.MULTILINE), program


def check_task(document):
    """Checks SkyPilot's file by SkyPilot's schema, its scripts by bash, and that it copies what Cargo builds."""
    check_file("task", document)
    for part in ("setup", "run"):
        check_script(f"task: {part}", document[part])
    for target, source in document["file_mounts"].items():
        need(source == f"target/release/{pathlib.PurePosixPath(target).name}", f"task: Cargo does not build {source}")
    # A path that both commands are given lies in the volume.
    commands = "\n".join(line for line in document["run"].splitlines() if line.strip().startswith("obsdiff "))
    for path in re.findall(r" (/[^\s]+)", commands):
        need(any(path.startswith(f"{place}/") for place in document["volumes"]), f"task: {path} lies in no volume")


# How the task of SkyPilot ends on a node: what the coordinator does, which the first node alone has, what the worker does, and the code.
TASK_ENDS = [
    ("exit 0", "exit 0", 0),
    ("exit 2", "exec sleep 60", 2),
    ("exec sleep 60", "exit 3", 3),
    ("sleep 1; exit 3", "exit 0", 3),
    (None, "exit 3", 3),
    (None, "exit 0", 0),
]


def check_task_ends(document):
    """Runs the task's script with a program in the place of obsdiff, which has to end in time and with the code of what failed."""
    for coordinator, worker, code in TASK_ENDS:
        with tempfile.TemporaryDirectory() as home:
            program = pathlib.Path(home, "bin", "obsdiff")
            program.parent.mkdir()
            program.write_text(f'#!/bin/bash\nif [ "$1" = coordinator ]; then\n{coordinator or "exit 9"}\nelse\n{worker}\nfi\n')
            program.chmod(0o755)
            variables = {**os.environ, "HOME": home, "SKYPILOT_NODE_IPS": "127.0.0.1", "SKYPILOT_NODE_RANK": "0" if coordinator else "1"}
            what = f"task: {coordinator} and {worker}"
            try:
                done = subprocess.run([shutil.which("bash"), "-c", document["run"]], env=variables, timeout=30, check=False)
            except subprocess.TimeoutExpired:
                raise Refused(f"{what}: does not end") from None
            need(done.returncode == code, f"{what}: ends with {done.returncode} in place of {code}")


def check_script(name, text):
    """Checks that bash can read a script."""
    done = subprocess.run([shutil.which("bash"), "-n"], input=text, capture_output=True, text=True, check=False)
    need(done.returncode == 0, f"{name}: {done.stderr}")
