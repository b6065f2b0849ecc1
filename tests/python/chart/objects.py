"""Strict checks of single Kubernetes objects. A kind that is not known here is refused."""

import json
import os
import pathlib
import re

import jsonschema
import kubernetes_validate

# The oldest Kubernetes that the chart supports, and the one from which claims of devices are stable.
VERSION, CLAIMS_VERSION = "1.33", "1.34"
BUILT_IN = {
    "v1/ConfigMap": VERSION,
    "v1/Secret": VERSION,
    "v1/Service": VERSION,
    "v1/ServiceAccount": VERSION,
    "v1/PersistentVolumeClaim": VERSION,
    "v1/Pod": VERSION,
    "batch/v1/Job": VERSION,
    "networking.k8s.io/v1/NetworkPolicy": VERSION,
    "policy/v1/PodDisruptionBudget": VERSION,
    "resource.k8s.io/v1/ResourceClaimTemplate": CLAIMS_VERSION,
}
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?")


class Refused(Exception):
    """What is wrong with an object."""


def need(true, problem):
    if not true:
        raise Refused(problem)


def closed(properties, required=()):
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": list(required),
    }


TEXT, FLAG, COUNT = {"type": "string", "minLength": 1}, {"type": "boolean"}, {"type": "integer", "minimum": 0}
TEXTS = {"type": "array", "items": TEXT, "minItems": 1}
JOB_TEMPLATE = closed({"metadata": {"type": "object"}, "spec": {"type": "object"}}, ["spec"])
REPLICATED_JOB = closed({"name": TEXT, "replicas": COUNT, "template": JOB_TEMPLATE}, ["name", "template"])
# The fields of JobSet that this repository uses, with the values that its documentation allows: the published schema has only their types.
JOBSET_SPEC = closed(
    {
        "replicatedJobs": {"type": "array", "items": REPLICATED_JOB, "minItems": 1},
        "successPolicy": closed({"operator": {"enum": ["All", "Any"]}, "targetReplicatedJobs": TEXTS}, ["operator"]),
        "failurePolicy": closed(
            {
                "maxRestarts": COUNT,
                "rules": {
                    "type": "array",
                    "maxItems": 20,
                    "items": closed(
                        {
                            "name": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]{0,126}[A-Za-z0-9_])?$"},
                            "action": {"enum": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]},
                            "onJobFailureReasons": {
                                "type": "array",
                                "items": {
                                    "enum": [
                                        "BackoffLimitExceeded",
                                        "DeadlineExceeded",
                                        "FailedIndexes",
                                        "MaxFailedIndexesExceeded",
                                        "PodFailurePolicy",
                                    ]
                                },
                            },
                            "targetReplicatedJobs": TEXTS,
                        },
                        ["action"],
                    ),
                },
            }
        ),
        "network": closed({"enableDNSHostnames": FLAG, "publishNotReadyAddresses": FLAG, "subdomain": TEXT}),
        "suspend": FLAG,
        "ttlSecondsAfterFinished": COUNT,
    },
    ["replicatedJobs"],
)
# Kinds whose schemas their own projects publish: names of files that schemas.py writes.
PUBLISHED = {
    "jobset.x-k8s.io/v1alpha2/JobSet": "JobSet",
    "cert-manager.io/v1/Certificate": "Certificate",
    "monitoring.coreos.com/v1/PodMonitor": "PodMonitor",
    "trainer.kubeflow.org/v1alpha1/ClusterTrainingRuntime": "ClusterTrainingRuntime",
}


def kind_of(document):
    return f"{document.get('apiVersion')}/{document.get('kind')}"


def check_object(document):
    """Refuses an object with an unknown kind, field or value. Gives its Jobs: pairs of their name and their spec."""
    kind = kind_of(document)
    if kind in BUILT_IN:
        check_built_in(document, BUILT_IN[kind])
    elif kind in PUBLISHED:
        check_published(document, PUBLISHED[kind])
    else:
        raise Refused(f"{kind}: there is no check for this kind")
    if document["kind"] == "ConfigMap":
        need(document.get("immutable") is True, "ConfigMap: immutable: is not true, so that an upgrade may change the job that runs")
    check_names(document)
    return jobs(document)


def check_file(name, document):
    """Refuses what one of the schemas that schemas.py writes does not allow."""
    check_schema(name, document, json.loads((pathlib.Path(os.environ["SCHEMAS"]) / f"{name}.json").read_text()))


def check_published(document, name):
    check_file(name, document)
    if name == "JobSet":
        check_schema(name, document["spec"], JOBSET_SPEC)
    if name == "ClusterTrainingRuntime":
        check_schema(name, document["spec"]["template"]["spec"], JOBSET_SPEC)


def check_schema(what, document, schema):
    error = jsonschema.exceptions.best_match(jsonschema.validators.validator_for(schema)(schema).iter_errors(document))
    need(error is None, error and f"{what}: {error.json_path}: {error.message}")


def check_built_in(document, version):
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        path = ".".join(str(part) for part in error.path)
        raise Refused(f"{kind_of(document)}: {path}: {error.message}") from None
    except kubernetes_validate.KubernetesValidateMissing as error:
        raise Refused(f"{kind_of(document)}: {error}") from None


def check_names(document):
    metadata = document["metadata"]
    need(LABEL.fullmatch(metadata["name"]), f"metadata.name: {metadata['name']} is no name of at most 63 characters")
    for label, value in metadata.get("labels", {}).items():
        need(LABEL_VALUE.fullmatch(value), f"metadata.labels: {label} is {value}, which no label may be")


def jobs(document):
    name, spec = document["metadata"]["name"], document.get("spec", {})
    if document["kind"] == "Job":
        return [(name, spec)]
    if document["kind"] == "JobSet":
        return replicated(name, spec)
    if document["kind"] == "ClusterTrainingRuntime":
        return replicated(name, spec["template"]["spec"])
    return []


def replicated(name, spec):
    """The Jobs of a JobSet's spec, each checked as Kubernetes would check it."""
    names = [job["name"] for job in spec["replicatedJobs"]]
    need(len(set(names)) == len(names), f"replicatedJobs: two have the same name: {names}")
    # With exit code 2 a coordinator's Job fails, and another try would fail again.
    rules = [rule for rule in spec.get("failurePolicy", {}).get("rules", []) if "PodFailurePolicy" in rule.get("onJobFailureReasons", [])]
    ends = [(rule["action"], rule.get("targetReplicatedJobs")) for rule in rules]
    need(ends == [("FailJobSet", ["coordinator"])], f"failurePolicy: the coordinator's exit code 2 leads to {ends}")
    policies = [spec.get("successPolicy", {}), *spec.get("failurePolicy", {}).get("rules", [])]
    for policy in policies:
        for target in policy.get("targetReplicatedJobs", []):
            need(target in names, f"targetReplicatedJobs: there is no {target} among {names}")
    found = []
    for job in spec["replicatedJobs"]:
        # JobSet counts the replicas of a Job from 0.
        job_name = f"{name}-{job['name']}-{max(job.get('replicas', 1) - 1, 0)}"
        check_built_in(
            {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": job_name}, "spec": job["template"]["spec"]},
            VERSION,
        )
        found.append((job_name, job["template"]["spec"]))
    return found
