"""Writes the schemas of kinds that Kubernetes does not come with, as their own projects publish them.

  python schemas.py FOLDER

The projects publish them as Python classes, which take long to import: the checks read the JSON that this leaves in FOLDER.
"""

import enum
import importlib.util
import json
import pathlib
import sys
import types


def strict(schema):
    """The schema without room for fields that it does not name. Kubernetes drops such fields, so that a typing error goes unseen."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    # Nothing here leaves a field empty by writing null, which these classes allow everywhere.
    if {"type": "null"} in schema.get("anyOf", ()):
        filled = [each for each in schema["anyOf"] if each != {"type": "null"}]
        schema = {**schema, "anyOf": filled} if len(filled) > 1 else {**without(schema, "anyOf"), **filled[0]}
    closed = {key: strict(value) for key, value in without(schema, "default", "description", "title").items()}
    # What is below `properties` are names of fields, of which some are called as words of a schema are.
    if isinstance(schema.get("properties"), dict):
        closed["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        closed.setdefault("additionalProperties", False)
    return closed


def without(schema, *keys):
    return {key: value for key, value in schema.items() if key not in keys}


def of_class(model, required=()):
    schema = strict(model.model_json_schema(by_alias=True))
    schema["required"] = sorted({*schema.get("required", ()), *required})
    return schema


def job_sets():
    """JobSet and the runtimes of Kubeflow Trainer, which contain one."""
    from kubeflow_trainer_api.models import JobsetV1alpha2JobSet, TrainerV1alpha1ClusterTrainingRuntime

    for model in (JobsetV1alpha2JobSet, TrainerV1alpha1ClusterTrainingRuntime):
        schema = of_class(model, ["apiVersion", "kind", "metadata", "spec"])
        # Kubernetes' own schemas check the Jobs.
        schema["$defs"]["IoK8sApiBatchV1JobSpec"] = {"type": "object"}
        yield schema


def task():
    """A task of SkyPilot. Only its schemas are imported: the rest takes many more packages."""
    origin = pathlib.Path(importlib.util.find_spec("sky").origin)
    package = types.ModuleType("sky")
    package.__path__, package.__version__ = [str(origin.parent)], "0"
    stopping = types.ModuleType("sky.skylet.autostop_lib")
    # When an idle cluster stops, and a task's part of the configuration: no task here says either.
    stopping.AutostopWaitFor = type("AutostopWaitFor", (), {"supported_modes": staticmethod(list)})
    sys.modules |= {"sky": package, "sky.skylet.autostop_lib": stopping}
    from sky.utils import schemas

    schemas._task_config_schema = lambda: {"type": "object", "additionalProperties": False}
    schema = schemas.get_task_schema()
    schema["properties"]["resources"] = schemas.get_resources_schema()
    return schema


def main():
    from cloudcoil.models.cert_manager.v1 import Certificate
    from cloudcoil.models.prometheus_operator.v1 import PodMonitor
    from compose_viz.spec.compose_spec import ComposeSpecification

    folder = pathlib.Path(sys.argv[1])
    folder.mkdir()
    job_set, runtime = job_sets()
    objects = ["apiVersion", "kind", "metadata", "spec"]
    made = {
        "JobSet": job_set,
        "ClusterTrainingRuntime": runtime,
        "Certificate": of_class(Certificate, objects),
        "PodMonitor": of_class(PodMonitor, objects),
        "compose": of_class(ComposeSpecification, ["services"]),
        "task": task(),
    }
    for name, schema in made.items():
        # Lists of names may be enumerations of Python.
        text = json.dumps(schema, default=lambda value: value.value if isinstance(value, enum.Enum) else list(value))
        (folder / f"{name}.json").write_text(text)


main()
