"""Values that the chart has to render, and values and objects that have to be refused."""

import copy

PROMPTS = "a red circle on white\na blue square on white\n"
# What every job needs.
LEAST = {"model": {"existingClaim": "model"}, "job": {"prompts": PROMPTS}}
# The case of which deploy/kubernetes.yaml is made.
PLAIN = {**LEAST, "token": {"existingSecret": "obsdiff-token"}}

PLACEMENT = {
    "podAnnotations": {"example.com/team": "images"},
    "podLabels": {"example.com/cost": "research"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "batch", "operator": "Exists", "effect": "NoSchedule"}],
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "In", "values": ["batch"]}]}]
            }
        }
    },
    "env": [{"name": "OBSDIFF_SPARSITY__RATIO", "value": "0.6"}, {"name": "AWS_REGION", "value": "eu-west-1"}],
    "envFrom": [{"secretRef": {"name": "bucket"}}],
}
SCRATCH = {
    "volumes": [{"name": "scratch", "emptyDir": {}}],
    "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
}
EVERYTHING = {
    "name": "n" * 41,
    "image": {
        "repository": "registry.example.com/obsdiff",
        "digest": "sha256:" + "0123456789abcdef" * 4,
        "pullSecrets": ["registry"],
    },
    "job": {"existingConfigMap": "my-job", "set": ["sparsity.ratio=0.6", 'output.state="s3://bucket/state"']},
    "model": {"existingClaim": "models", "subPath": "sd3.5-large"},
    "output": {"existingClaim": "results"},
    "coordinator": {**PLACEMENT, **SCRATCH, "cpu": 0.5, "startupSeconds": 7198},
    "worker": {
        **PLACEMENT,
        "replicas": 16,
        "device": "cuda",
        "cpu": 7.5,
        "memory": "64Gi",
        "sharedMemory": "512Mi",
        "extraResources": {"rdma/hca": 1},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
        **SCRATCH,
    },
    "gpu": {"mode": "claim"},
    "runtimeClassName": "nvidia",
    "priorityClassName": "batch",
    "serviceAccount": {"create": True, "annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/obsdiff"}},
    "tls": {"mode": "certManager", "issuer": "authority", "issuerKind": "ClusterIssuer"},
    "networkPolicy": {
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "watcher"}}}]}],
        "egress": [{"ports": [{"port": 443, "protocol": "TCP"}]}],
    },
    "disruptionBudget": {"enabled": True},
    "logFormat": "json",
    "podMonitor": {"enabled": True, "interval": "15s", "labels": {"release": "prometheus"}},
    "kueue": {"queue": "images", "priorityClass": "low", "topology": "cloud.provider.com/topology-rack"},
    "activeDeadlineSeconds": 86400,
    "ttlSecondsAfterFinished": None,
}
ELASTIC = {
    **EVERYTHING,
    "kind": "Job",
    "gpu": {"mode": "plugin"},
    "tls": {"mode": "secret", "existingSecret": "certificates", "plainCollectives": False},
    "kueue": {"queue": "images", "minWorkers": 2, "elastic": True},
    "disruptionBudget": {"enabled": True, "minWorkers": 4},
}
# Sums of GPUs of several hosts, over a network of their own.
NCCL = [{"name": "NCCL_SOCKET_IFNAME", "value": "eth0"}, {"name": "NCCL_IB_HCA", "value": "mlx5"}]
FABRIC = {
    **LEAST,
    "worker": {"device": "cuda", "sharedMemory": "8Gi", "extraResources": {"rdma/hca": 1}, "env": NCCL},
}
# A job that needs no volume of the cluster's.
STORED = {
    "model": {"url": "s3://bucket/models/sd3.5-large"},
    "output": {"url": "gs://results/pruned"},
    "job": {"prompts": PROMPTS},
    "coordinator": {"envFrom": [{"secretRef": {"name": "bucket"}}]},
    "worker": {"envFrom": [{"secretRef": {"name": "bucket"}}]},
}
# Zeros that say something else than no value at all.
ZEROS = {**LEAST, "ttlSecondsAfterFinished": 0, "disruptionBudget": {"enabled": True, "minWorkers": 0}}
# Spaces and ends of lines that YAML would fold or drop.
ODD_PROMPTS = "  led by spaces\na line\u2028in two\x85or three\n\n"
ODD = {**LEAST, "job": {"prompts": ODD_PROMPTS}, "worker": {"memory": "1Ti", "patience": "2d"}}
DRAINED = {**LEAST, "kind": "Job", "worker": {"replicas": 8}, "kueue": {"minWorkers": 3}, "disruptionBudget": {"enabled": True}}
# A model and an output at other places, which the job, a key or a variable names.
ELSEWHERE = {
    **LEAST,
    "job": {"prompts": PROMPTS, "set": ["model.path=/models/sd3.5-large"]},
    "model": {"existingClaim": "model", "mountPath": "/models"},
    "output": {"mountPath": "/results"},
    "coordinator": {"env": [{"name": "OBSDIFF_OUTPUT__PATH", "value": "/results/pruned"}]},
}
# Prompts that fit no ConfigMap, as deploy/chart/README.md shows.
PROMPTS_CLAIM = {
    "model": {"existingClaim": "model"},
    "job": {"set": ["calibration.prompts=/prompts/prompts.txt"]},
    "coordinator": {
        "volumes": [{"name": "prompts", "persistentVolumeClaim": {"claimName": "prompts", "readOnly": True}}],
        "volumeMounts": [{"name": "prompts", "mountPath": "/prompts", "readOnly": True}],
    },
}
ACCEPTED = {
    "odd": ODD,
    "prompts-claim": PROMPTS_CLAIM,
    "drained": DRAINED,
    "elsewhere": ELSEWHERE,
    "stored": STORED,
    "stored-jobs": {**STORED, "kind": "Job", "cache": {"size": "40Gi", "storageClassName": "fast"}},
    "plain": PLAIN,
    "least": LEAST,
    "least-jobs": {**LEAST, "kind": "Job"},
    "everything": EVERYTHING,
    "elastic": ELASTIC,
    "fabric": FABRIC,
    "fabric-jobs": {**FABRIC, "kind": "Job"},
    "zeros": ZEROS,
    "zeros-jobs": {**ZEROS, "kind": "Job"},
    "monitored": {**LEAST, "podMonitor": {"enabled": True}},
    "open": {**LEAST, "token": {"enabled": False}, "networkPolicy": {"enabled": False}},
}
# What the Pod Security level restricted forbids.
LOCKED = {**LEAST, "worker": {"addCapabilities": ["IPC_LOCK"]}}


def changed(values, path, value):
    """The values with another one at a path such as worker.replicas."""
    values = copy.deepcopy(values)
    inner = values
    *folders, name = path.split(".")
    for folder in folders:
        inner = inner.setdefault(folder, {})
    inner[name] = value
    return values


# Path and value that are set beside LEAST, and words of the refusal.
REFUSED_VALUES = [
    ("worker.replicsa", 4, "'replicsa' not allowed"),
    ("workers", {}, "'workers' not allowed"),
    ("worker.replicas", 0, "/worker/replicas"),
    ("worker.replicas", "2", "/worker/replicas"),
    ("worker.device", "gpu", "must be one of 'cpu', 'cuda'"),
    ("worker.memory", "16GB", "/worker/memory"),
    ("worker.patience", "10 minutes", "/worker/patience"),
    ("worker.patience", "59min", "worker.patience: is 59min, less than the 3600 s"),
    ("disruptionBudget", {"enabled": True, "minWorkers": 2}, "disruptionBudget.minWorkers: is 2"),
    ("kind", "Jobset", "must be one of 'JobSet', 'Job'"),
    ("kueue.elastic", True, "/kueue/elastic"),
    ("kueue.minWorkers", 2, "/kueue/minWorkers"),
    ("image.digest", "sha256:12", "/image/digest"),
    ("image.pullPolicy", "always", "/image/pullPolicy"),
    ("coordinator.port", 80, "/coordinator/port"),
    ("coordinator.startupSeconds", 0, "/coordinator/startupSeconds"),
    ("ttlSecondsAfterFinished", -1, "/ttlSecondsAfterFinished"),
    ("model.mountPath", "model", "/model/mountPath"),
    ("model.existingClaim", "", "model.existingClaim: is empty"),
    ("model.url", "s3://bucket/model", "model.url: is set, and so is a volume for the model"),
    ("model.url", "https://bucket/model", "/model/url"),
    ("model.url", "s3://bucket", "/model/url"),
    ("output", {"url": "az://results/out", "existingClaim": "results"}, "output.url: is set, and so is a volume"),
    ("output.url", "/output", "/output/url"),
    ("cache.size", "1T", "/cache/size"),
    ("job.prompts", "", "job.prompts: is empty"),
    ("job.prompts", "a" * 1_000_000, "job.prompts: is larger"),
    ("output.mountPath", "/tmp", "output.mountPath: is /tmp"),
    ("output.mountPath", "/model", "output.mountPath: is /model"),
    ("output.mountPath", "/outputs", "job: output.path is /output/pruned"),
    ("model.mountPath", "/job", "model.mountPath: is /job"),
    ("model.mountPath", "/models", "job: model.path is /model,"),
    ("job.set", ["output.path=/outputs/pruned"], "job: output.path is /outputs/pruned"),
    ("job.file", "[model]\npath = \"/model\"\n[output]\n  path='pruned' # here\n", "job: output.path is pruned,"),
    ("tls.duration", "1h", "/tls/duration"),
    ("logFormat", "yaml", "must be one of 'text', 'json'"),
    ("tls.mode", "mtls", "/tls/mode"),
    ("tls.mode", "secret", "tls.existingSecret: is empty"),
    ("tls.mode", "certManager", "tls.issuer: is empty"),
    ("gpu.mode", "dra", "/gpu/mode"),
    ("security.runAsUser", 0, "/security/runAsUser"),
    ("name", "n" * 42, "has 42 characters: set name to one of at most 41"),
    ("name", "Job", "/name"),
    ("activeDeadlineSeconds", 0, "/activeDeadlineSeconds"),
    ("podMonitor.interval", "often", "/podMonitor/interval"),
    ("podMonitor.enable", True, "'enable' not allowed"),
]

COORDINATOR = "spec.replicatedJobs.0.template.spec.template.spec.containers.0"
POD = "spec.replicatedJobs.1.template.spec.template.spec"
WORKERS = "spec.replicatedJobs.1.template.spec"
FAIL_ALL = {"action": "FailJob", "onExitCodes": {"containerName": "obsdiff", "operator": "In", "values": [2]}}
RUNTIME = "spec.template.spec"
# Mistakes in the objects of the case `plain`, of `everything` where that has none of the kind, or of the runtime for Kubeflow: kind, path, value (None removes it), and words of the refusal.
REFUSED_OBJECTS = [
    ("JobSet", "apiVersion", "jobset.x-k8s.io/v1", "no check for this kind"),
    ("JobSet", "metadata.name", "n" * 64, "at most 63 characters"),
    ("JobSet", "metadata.labels.team", "a b", "no label"),
    ("JobSet", "spec.replicatedJob", [], "replicatedJob"),
    ("JobSet", "spec.successPolicy.operator", "Each", "'Each' is not one of"),
    ("JobSet", "spec.successPolicy.targetReplicatedJobs", ["driver"], "there is no driver"),
    ("JobSet", "spec.failurePolicy.rules.0.action", "Fail", "'Fail' is not one of"),
    ("JobSet", "spec.failurePolicy.rules.0.onJobFailureReasons", ["ExitCode"], "'ExitCode' is not one of"),
    ("JobSet", "spec.replicatedJobs.1.name", "coordinator", "the same name"),
    ("JobSet", "spec.replicatedJobs.1.template.spec.paralelism", 2, "paralelism"),
    ("JobSet", "spec.replicatedJobs.1.template.spec.completions", None, "needs their number"),
    ("JobSet", "spec.replicatedJobs.1.template.spec.completionMode", "NonIndexed", "needs completionMode Indexed"),
    ("JobSet", "spec.replicatedJobs.1.template.spec.podReplacementPolicy", None, "needs Failed"),
    ("JobSet", "spec.replicatedJobs.1.template.spec.podFailurePolicy.rules.0.action", "Skip", "no action Skip"),
    ("JobSet", "spec.replicatedJobs.1.template.spec.podFailurePolicy.rules.1.onExitCodes.values", [3], "in place of"),
    ("JobSet", "spec.replicatedJobs.1.template.spec.podFailurePolicy.rules.1.onExitCodes.containerName", "x", "container"),
    ("JobSet", f"{WORKERS}.podFailurePolicy.rules.1", FAIL_ALL, "in place of"),
    ("JobSet", f"{WORKERS}.backoffLimitPerIndex", 6, "a worker is given up"),
    ("JobSet", f"{WORKERS}.maxFailedIndexes", 1, "workers alone"),
    ("JobSet", "spec.failurePolicy.rules.0.targetReplicatedJobs", None, "exit code 2 leads to"),
    ("JobSet", f"{POD}.containers.0.args.2", "--patience=59min", "gives up while"),
    ("JobSet", f"{POD}.containers.0.volumeMounts.2.mountPath", "/scratch", "nothing is mounted at /tmp"),
    ("JobSet", f"{POD}.restartPolicy", "OnFailure", "needs Never"),
    ("JobSet", f"{POD}.enableServiceLinks", None, "enableServiceLinks"),
    ("JobSet", f"{POD}.hostNetwork", True, "hostNetwork"),
    ("JobSet", f"{POD}.securityContext.runAsNonRoot", None, "runAsNonRoot"),
    ("JobSet", f"{POD}.containers.0.securityContext.readOnlyRootFilesystem", False, "readOnlyRootFilesystem"),
    ("JobSet", f"{POD}.containers.0.securityContext.capabilities.add", ["IPC_LOCK"], "IPC_LOCK"),
    ("JobSet", f"{POD}.containers.0.args.0", 1, "args"),
    ("JobSet", f"{POD}.containers.0.env.0.name", "OBSDIFF_PORT", "neither obsdiff's nor a key"),
    ("JobSet", f"{POD}.containers.0.volumeMounts.0.mountPath", 3, "mountPath"),
    ("JobSet", f"{POD}.containers.0.volumeMounts.3.name", "tokens", "not both defined and mounted"),
    ("JobSet", f"{POD}.containers.0.volumeMounts.3.mountPath", "/tokens", "nothing is mounted"),
    ("JobSet", f"{POD}.volumes.0.persistentVolumeClaim", {"claimName": "models"}, "there is no PersistentVolumeClaim models"),
    ("JobSet", f"{POD}.volumes.2.emptyDir", {"medium": "Memory", "sizeLimit": "16Gi"}, "does not count"),
    ("JobSet", "spec.network.subdomain", "other", "is none of"),
    ("JobSet", "spec.network.publishNotReadyAddresses", False, "is none of"),
    ("JobSet", f"{POD}.containers.0.args.1", "--coordinator=https://obsdiff-coordinator-0-0.obsdiff:7070", "scheme"),
    ("JobSet", f"{POD}.containers.0.args.1", "--coordinator=http://obsdiff-coordinator-0-0.obsdiff:7071", "port 7071"),
    ("JobSet", f"{POD}.containers.0.args.4", "--quiet", "would refuse to dial"),
    ("JobSet", f"{POD}.containers.0.args.5", "--quiet", "not given to both sides"),
    ("JobSet", f"{COORDINATOR}.ports.0.containerPort", 7071, "listens on"),
    ("JobSet", f"{COORDINATOR}.readinessProbe.httpGet.path", "/ready", "another page than /readyz"),
    ("JobSet", f"{COORDINATOR}.livenessProbe.httpGet.port", 7071, "the livenessProbe asks another port"),
    ("NetworkPolicy", "spec.podSelector.matchLabels.team", "images", "does not cover every pod"),
    ("NetworkPolicy", "spec.podSelectors", {}, "podSelectors"),
    ("NetworkPolicy", "kind", "NetworkPolicies", "no check for this kind"),
    ("ConfigMap", "data.job", 3, "data.job"),
    ("ConfigMap", "immutable", None, "immutable"),
    ("PersistentVolumeClaim", "spec.accessMode", ["ReadWriteMany"], "accessMode"),
    ("JobSet", "spec.network.subdomains", "other", "subdomains"),
    ("JobSet", "spec.ttlSecondsAfterFinished", "soon", "is not of type 'integer'"),
    ("JobSet", "spec.replicatedJobs.0.replicas", "1", "is not of type 'integer'"),
    ("JobSet", "kind", "JobSets", "no check for this kind"),
    ("Certificate", "spec.secretname", "tls", "secretname"),
    ("Certificate", "spec.secretName", None, "'secretName' is a required property"),
    ("Certificate", "spec.usages", ["server"], "'server' is not one of"),
    ("Certificate", "spec.privateKey.algorithm", "EC", "'EC' is not one of"),
    ("Certificate", "spec.issuerRef.name", None, "'name' is a required property"),
    ("Certificate", "spec.dnsNames", ["elsewhere"], "no certificate for"),
    ("Certificate", "spec.dnsNames", [f"{'n' * 41}-coordinator-0-0.{'n' * 41}"], "no certificate for localhost"),
    ("Certificate", "spec.renewBefore", "1h", "than at its half"),
    ("Certificate", "apiVersion", "cert-manager.io/v2", "no check for this kind"),
    ("PodMonitor", "spec.podMetricsEndpoints.0.intervals", "15s", "intervals"),
    ("PodMonitor", "spec.podMetricsEndpoints.0.interval", "often", "does not match"),
    ("PodMonitor", "spec.podMetricsEndpoints.0.scheme", "tcp", "'tcp' is not one of"),
    ("PodMonitor", "spec.podMetricsEndpoints.0.scheme", "http", "does not fit the certificates"),
    ("PodMonitor", "spec.podMetricsEndpoints.0.path", "/metric", "in place of /metrics"),
    ("PodMonitor", "spec.podMetricsEndpoints.0.authorization.credentials.key", None, "'key' is a required property"),
    ("PodMonitor", "spec.selector", None, "'selector' is a required property"),
    ("ClusterTrainingRuntime", "spec.mlPolicies", {}, "mlPolicies"),
    ("ClusterTrainingRuntime", "spec.mlPolicy.numNodes", "2", "is not of type 'integer'"),
    ("ClusterTrainingRuntime", f"{RUNTIME}.successPolicy.operator", "One", "'One' is not one of"),
    ("ClusterTrainingRuntime", f"{RUNTIME}.replicatedJobs.0.template.spec.backoffLimits", 6, "backoffLimits"),
    ("ClusterTrainingRuntime", f"{RUNTIME}.replicatedJobs.1.template.spec.backoffLimitPerIndex", 6, "a worker is given up"),
    ("ClusterTrainingRuntime", f"{RUNTIME}.failurePolicy.rules.0.targetReplicatedJobs", None, "exit code 2 leads to"),
    ("ClusterTrainingRuntime", f"{RUNTIME}.replicatedJobs.0.template.spec.template.spec.containers.0.volumeMounts.3.mountPath", "/scratch", "nothing is mounted at /tmp"),
    ("ClusterTrainingRuntime", "apiVersion", "trainer.kubeflow.org/v1", "no check for this kind"),
]
# Mistakes in the files for other places: file, path, value (None removes it), and words of the refusal.
REFUSED_FILES = [
    ("compose", "service", {}, "'service' was unexpected"),
    ("compose", "services.coordinator.comand", [], "'comand' was unexpected"),
    ("compose", "services.coordinator.read_only", [], "read_only"),
    ("compose", "services.coordinator.healthcheck.every", "10s", "'every' was unexpected"),
    ("compose", "services.coordinator.healthcheck.test", ["CMD", "/bin/obsdiff", "status", "http://127.0.0.1:7070"], "no program"),
    ("compose", "services.coordinator.healthcheck.test.3", "http://127.0.0.1:7071", "asks another port"),
    ("compose", "services.coordinator.build.target", "gpu", "no stage gpu"),
    ("compose", "services.coordinator.command.1", "deploy/jobs/shapes.toml", "there is no deploy/jobs/shapes.toml"),
    ("compose", "services.coordinator.working_dir", "/work", "nothing is mounted at /work"),
    ("compose", "services.coordinator.volumes.2", "../out:/sources/out:ro", "cannot be written"),
    ("compose", "services.coordinator.volumes.1", "../tests/asset:/sources/tests/assets:ro", "is not there to be read"),
    ("compose", "services.worker-1.image", "obsdiff:latest", "nothing builds the image"),
    ("compose", "services.worker-1.networks", ["jobs"], "there is no network jobs"),
    ("compose", "services.worker-1.depends_on", ["driver"], "there is no service driver"),
    ("compose", "services.worker-2.command.1", "--coordinator=http://coordinator:7071", "but coordinator listens on 7070"),
    ("compose", "services.worker-2.command.1", "--coordinator=http://obsdiff:7070", "but coordinator listens on 7070"),
    ("compose", "services.worker-1.cap_drop", None, "more rights"),
    ("task", "node", 2, "'node' was unexpected"),
    ("task", "num_nodes", "two", "is not of type 'integer'"),
    ("task", "resources.cpu", "8+", "'cpu' was unexpected"),
    ("task", "run", "if true; then", "syntax error"),
    ("task", "run", "obsdiff coordinator /job.toml\n", "/job.toml lies in no volume"),
    ("task", "file_mounts", {"~/bin/obsdiff": "target/debug/obsdiff"}, "Cargo does not build"),
]
