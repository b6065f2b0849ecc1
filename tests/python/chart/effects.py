"""What each value has to do to the objects of a job, and that only the value does it."""

import base64

from cases import NCCL, ODD_PROMPTS, PLACEMENT
from objects import need

DIGEST = "registry.example.com/obsdiff@sha256:" + "0123456789abcdef" * 4
POD = {
    "spec.nodeSelector": PLACEMENT["nodeSelector"],
    "spec.tolerations": PLACEMENT["tolerations"],
    "spec.affinity": PLACEMENT["affinity"],
    "spec.priorityClassName": "batch",
    "spec.imagePullSecrets": [{"name": "registry"}],
    "spec.containers.0.image": DIGEST,
    "spec.containers.0.env": PLACEMENT["env"],
    "spec.containers.0.envFrom": PLACEMENT["envFrom"],
    "spec.volumes": [
        {"name": "scratch", "emptyDir": {}},
        {"name": "model", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
    ],
    "spec.containers.0.volumeMounts": [
        {"name": "scratch", "mountPath": "/scratch"},
        {"name": "model", "mountPath": "/model", "readOnly": True, "subPath": "sd3.5-large"},
    ],
    "metadata.annotations": PLACEMENT["podAnnotations"],
    "metadata.labels": PLACEMENT["podLabels"],
}
SPREAD = [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}]
WORKER = {
    **POD,
    "spec.topologySpreadConstraints": SPREAD,
    "spec.runtimeClassName": "nvidia",
    "spec.containers.0.args": ["--device=cuda", "--collective=nccl", "--threads=8", "--log-format=json"],
    # Of the process and of the shared memory.
    "spec.containers.0.resources.limits": {"memory": f"{64 * 1024 + 512}Mi", "rdma/hca": 1},
}
# What the values of these cases have to give: of the pods of a role, of its Job or replicated Job, or of the objects of a kind.
EFFECTS = {
    "everything": {
        "coordinator": {
            **POD,
            "spec.containers.0.args": ["--log-format=json"],
            "spec.containers.0.resources.requests": {"cpu": "0.5"},
            # Of five seconds each, at least as many as the values say.
            "spec.containers.0.startupProbe": {"periodSeconds": 5, "failureThreshold": 1440},
        },
        "worker": {
            **WORKER,
            "metadata.annotations": {
                **PLACEMENT["podAnnotations"],
                "kueue.x-k8s.io/podset-preferred-topology": "cloud.provider.com/topology-rack",
            },
            "spec.resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "n" * 41 + "-gpu"}],
            "spec.containers.0.resources.claims": [{"name": "gpu"}],
            # As long as the coordinator may take.
            "spec.containers.0.args": [*WORKER["spec.containers.0.args"], "--patience=7198s"],
        },
        "job of the coordinator": {"activeDeadlineSeconds": 86400},
        "job of the worker": {"activeDeadlineSeconds": 86400, "completions": 16, "parallelism": 16},
        "JobSet": {"metadata.labels": {"kueue.x-k8s.io/queue-name": "images", "kueue.x-k8s.io/priority-class": "low"}},
        "PodDisruptionBudget": {"spec.minAvailable": 15},
    },
    "fabric": {
        "worker": {
            "spec.containers.0.env": NCCL,
            "spec.containers.0.args": ["--device=cuda", "--collective=nccl"],
            "spec.containers.0.resources.limits": {"rdma/hca": 1, "nvidia.com/gpu": 1, "memory": f"{(16 + 8) * 1024}Mi"},
            "spec.volumes": [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "8Gi"}}],
            "spec.containers.0.volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
        },
    },
    "locked": {"worker": {"spec.containers.0.securityContext.capabilities.add": ["IPC_LOCK"]}},
    "elastic": {
        "worker": {**WORKER, "spec.containers.0.resources.limits": {**WORKER["spec.containers.0.resources.limits"], "nvidia.com/gpu": 1}},
        # Of each worker's six failures.
        "job of the worker": {"activeDeadlineSeconds": 86400, "parallelism": 16, "backoffLimit": 96},
        "Job": {"metadata.labels": {"kueue.x-k8s.io/queue-name": "images"}},
        "Job of the worker": {"metadata.annotations": {"kueue.x-k8s.io/job-min-parallelism": "2", "kueue.x-k8s.io/elastic-job": "true"}},
        "PodDisruptionBudget": {"spec.minAvailable": 4},
    },
}
EFFECTS["fabric-jobs"] = EFFECTS["fabric"]
NO_WORKERS = {"PodDisruptionBudget": {"spec.minAvailable": 0}}
EFFECTS["zeros"] = {**NO_WORKERS, "JobSet": {"spec.ttlSecondsAfterFinished": 0}}
EFFECTS["zeros-jobs"] = {**NO_WORKERS, "Job": {"spec.ttlSecondsAfterFinished": 0}}
# The fewest workers with which the job may start may stay alone.
EFFECTS["drained"] = {"PodDisruptionBudget": {"spec.minAvailable": 3}}
EFFECTS["odd"] = {
    "ConfigMap": {"binaryData": {"prompts.txt": base64.b64encode(ODD_PROMPTS.encode()).decode()}},
    "worker": {"spec.containers.0.resources.limits": {"memory": f"{1024 * 1024}Mi"}, "spec.containers.0.args": ["--patience=2d"]},
}
# Workers wait for two hours while the coordinator copies the model.
EFFECTS["sd3.5-large-without-volumes"] = {
    "coordinator": {"spec.containers.0.startupProbe": {"periodSeconds": 5, "failureThreshold": 1440}},
    "worker": {"spec.containers.0.args": ["--patience=2h"]},
}
# What is the workers' alone: case, path and values that no pod of the coordinator has.
WORKERS_ALONE = [(case, path, wanted) for case in ("fabric", "fabric-jobs") for path, wanted in EFFECTS["fabric"]["worker"].items()]
# The same without these values.
WITHOUT = {
    **dict.fromkeys(("fabric", "everything", "locked", "zeros", "odd", "sd3.5-large-without-volumes"), "least"),
    **dict.fromkeys(("fabric-jobs", "elastic", "zeros-jobs", "drained"), "least-jobs"),
}


def check_effects(rendered):
    """Checks the objects of all cases, by their names. Gives the number of effects."""
    count = 0
    for case, effects in EFFECTS.items():
        with_values, without = named(rendered[case]), named(rendered[WITHOUT[case]])
        for name, paths in effects.items():
            for path, wanted in paths.items():
                what = f"{case}: {path} of {name}"
                need(name in with_values, f"{what}: there is no {name}")
                for found in with_values[name]:
                    need(holds(found, path, wanted), f"{what} has not {wanted}")
                for found in without.get(name, []):
                    need(not holds(found, path, wanted), f"{what} has {wanted} without the values, too")
                count += 1
    for case, path, wanted in WORKERS_ALONE:
        parts = wanted if isinstance(wanted, list) else [{key: value} for key, value in wanted.items()]
        for found in named(rendered[case])["coordinator"]:
            for part in parts:
                alone = [part] if isinstance(wanted, list) else part
                need(not holds(found, path, alone), f"{case}: {path} of the coordinator has {part}, which is the workers'")
    return count


def named(found):
    """The objects by kind, the specs of jobs and the templates of pods by role."""
    names = {}
    for document in found:
        names.setdefault(document["kind"], []).append(document)
        jobs = [document["spec"]] if document["kind"] == "Job" else []
        if document["kind"] == "JobSet":
            jobs = [job["template"]["spec"] for job in document["spec"]["replicatedJobs"]]
        for job in jobs:
            role = job["template"]["metadata"]["labels"]["app.kubernetes.io/component"]
            names[role] = [job["template"]]
            names[f"job of the {role}"] = [job]
            if document["kind"] == "Job":
                names[f"Job of the {role}"] = [document]
    return names


def holds(found, path, wanted):
    """Whether what lies at a path is this, or has at least these members."""
    for part in path.split("."):
        if isinstance(found, list):
            found = found[int(part)]
        else:
            found = found.get(part)
        if found is None:
            return False
    if isinstance(wanted, dict):
        return wanted.items() <= found.items()
    if isinstance(wanted, list):
        return all(each in found for each in wanted)
    return found == wanted
