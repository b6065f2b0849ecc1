"""Checks of Jobs and pods that no schema makes: values of enumerations, references, and the Pod Security level restricted."""

from objects import Refused, need

# Environment variables of obsdiff that are no keys of a job.
NO_KEYS = {"OBSDIFF_LOG"}
# The exit codes of obsdiff for input that has to be changed, and for SIGINT and SIGTERM.
BAD_INPUT, STOPPED = [2], [130, 143]
# How often a worker of an indexed Job has to be replaced at least: for ever, as an index that is given up makes the Job fail at its end.
ALWAYS = 1_000_000


def check_job(name, spec):
    mode = spec.get("completionMode", "NonIndexed")
    need(mode in ("Indexed", "NonIndexed"), f"{name}: completionMode: there is no {mode}")
    indexed = mode == "Indexed"
    # Kubernetes names a pod by its Job, its index where it has one, and five characters.
    index = len(f"-{spec.get('completions', 1) - 1}") if indexed else 0
    need(len(name) + index + len("-abcde") <= 63, f"{name}: the names of its pods have more than 63 characters")
    need(not indexed or spec.get("completions"), f"{name}: completions: an indexed Job needs their number")
    need(indexed or "backoffLimitPerIndex" not in spec, f"{name}: backoffLimitPerIndex: needs completionMode Indexed")
    role = spec["template"]["spec"]["containers"][0]["args"][0]
    if role == "worker" and indexed:
        need(spec.get("backoffLimitPerIndex", 0) >= ALWAYS, f"{name}: backoffLimitPerIndex: a worker is given up")
        need("backoffLimit" not in spec and "maxFailedIndexes" not in spec, f"{name}: workers alone make the job fail")
    check_failure_policy(name, role, spec)
    check_pod(name, spec["template"])


def check_failure_policy(name, role, spec):
    pod = spec["template"]["spec"]
    containers = [container["name"] for container in pod["containers"]]
    need(pod.get("restartPolicy") == "Never", f"{name}: restartPolicy: podFailurePolicy needs Never")
    need(spec.get("podReplacementPolicy") == "Failed", f"{name}: podReplacementPolicy: podFailurePolicy needs Failed")
    what = {}
    for rule in spec.get("podFailurePolicy", {}).get("rules", []):
        action, codes = rule["action"], rule.get("onExitCodes")
        need(
            action in ("Ignore", "FailJob", "Count") or (action == "FailIndex" and "backoffLimitPerIndex" in spec),
            f"{name}: podFailurePolicy: there is no action {action}",
        )
        need(bool(codes) != bool(rule.get("onPodConditions")), f"{name}: podFailurePolicy: a rule has one condition")
        if codes:
            need(codes["operator"] in ("In", "NotIn"), f"{name}: podFailurePolicy: there is no {codes['operator']}")
            need(codes.get("containerName") in containers, f"{name}: podFailurePolicy: names no container")
            what[tuple(codes["values"])] = action
        for condition in rule.get("onPodConditions", []):
            what[condition["type"]] = action
    wanted = {"DisruptionTarget": "Ignore", tuple(STOPPED): "Ignore"}
    # A worker's may come from its node alone.
    if role == "coordinator":
        wanted[tuple(BAD_INPUT)] = "FailJob"
    need(what == wanted, f"{name}: podFailurePolicy: says {what} in place of {wanted}")


def check_pod(name, template):
    pod = template["spec"]
    need(pod.get("enableServiceLinks") is False, f"{name}: enableServiceLinks: Services would set keys of the job")
    need(pod.get("automountServiceAccountToken") is False, f"{name}: automountServiceAccountToken: is not needed")
    check_restricted(name, pod)
    check_scratch(name, pod)
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    need(len(volumes) == len(pod.get("volumes", [])), f"{name}: volumes: two have the same name")
    claims = {claim["name"] for claim in pod.get("resourceClaims", [])}
    for container in pod["containers"]:
        check_container(name, container, volumes, claims)
    mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
    need(mounted == set(volumes), f"{name}: volumes: {sorted(mounted ^ set(volumes))} are not both defined and mounted")


def check_scratch(name, pod):
    """A root that is read-only needs a place for files of the moment."""
    for container in pod["containers"]:
        # The test only asks the coordinator.
        paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        need("/tmp" in paths or container["args"][0] == "status", f"{name}: volumeMounts: nothing is mounted at /tmp")


def check_restricted(name, pod, writes=False):
    """Pod Security Standards, level restricted, and a root that is read-only unless the pod writes there."""
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        need(not pod.get(field), f"{name}: {field}: restricted forbids it")
    security = pod.get("securityContext", {})
    need(security.get("runAsNonRoot") is True, f"{name}: runAsNonRoot: restricted needs it")
    need(security.get("runAsUser", 1) != 0, f"{name}: runAsUser: restricted forbids 0")
    need(security.get("seccompProfile", {}).get("type") == "RuntimeDefault", f"{name}: seccompProfile: is not set")
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "csi", "ephemeral", "projected", "downwardAPI"}
    for volume in pod.get("volumes", []):
        sources = set(volume) - {"name"}
        need(len(sources) == 1, f"{name}: volume {volume['name']}: has {len(sources)} sources")
        need(sources <= allowed, f"{name}: volume {volume['name']}: restricted forbids {sources.pop()}")
    for container in pod["containers"]:
        context = container.get("securityContext", {})
        need(context.get("allowPrivilegeEscalation") is False, f"{name}: allowPrivilegeEscalation: is not false")
        need(writes or context.get("readOnlyRootFilesystem") is True, f"{name}: readOnlyRootFilesystem: is not true")
        need(not context.get("privileged"), f"{name}: privileged: restricted forbids it")
        capabilities = context.get("capabilities", {})
        need(capabilities.get("drop") == ["ALL"], f"{name}: capabilities: are not all dropped")
        added = set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}
        need(not added, f"{name}: capabilities: restricted forbids {sorted(added)}")


def check_container(name, container, volumes, claims):
    need(container.get("imagePullPolicy", "Always") in ("Always", "IfNotPresent", "Never"), f"{name}: imagePullPolicy")
    need("command" not in container, f"{name}: command: process 1 is the image's")
    paths = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
    need(len(set(paths)) == len(paths), f"{name}: volumeMounts: two have the same path")
    for argument in container["args"]:
        need(isinstance(argument, str), f"{name}: args: {argument!r} is no text")
        flag, _, value = argument.partition("=")
        if flag in ("--token-file", "--tls-cert", "--tls-key", "--tls-ca"):
            need(value.rsplit("/", 1)[0] in paths, f"{name}: {flag}: nothing is mounted at {value}")
        if flag == "--cache":
            need(value in paths, f"{name}: {flag}: nothing is mounted at {value}")
    for variable in container.get("env", []):
        key = variable["name"]
        keys = key.startswith("OBSDIFF_") and "__" not in key and key not in NO_KEYS
        need(not keys, f"{name}: env: {key} is neither obsdiff's nor a key of a job")
    resources = container["resources"]
    used = {claim["name"] for claim in resources.get("claims", [])}
    need(used == claims, f"{name}: resourceClaims: {sorted(used ^ claims)} are not both defined and used")
    memory = mebibytes(resources["limits"]["memory"])
    need(resources["requests"]["memory"] == resources["limits"]["memory"], f"{name}: memory: limit and request differ")
    in_memory = [v["emptyDir"] for v in volumes.values() if v.get("emptyDir", {}).get("medium") == "Memory"]
    for volume in in_memory:
        need("sizeLimit" in volume, f"{name}: a volume in memory has no limit")
        need(mebibytes(volume["sizeLimit"]) < memory, f"{name}: memory: the limit does not count a volume in memory")


def mebibytes(size):
    for unit, factor in (("Ti", 1024 * 1024), ("Gi", 1024), ("Mi", 1)):
        if size.endswith(unit):
            return int(size[: -len(unit)]) * factor
    raise Refused(f"{size} is no number of Mi, Gi or Ti")


def references(pod):
    """The names of what a pod uses, by kind."""
    named = set()
    for volume in pod.get("volumes", []):
        if "configMap" in volume:
            named.add(("ConfigMap", volume["configMap"]["name"]))
        if "secret" in volume:
            named.add(("Secret", volume["secret"]["secretName"]))
        if "persistentVolumeClaim" in volume:
            named.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
    for claim in pod.get("resourceClaims", []):
        named.add(("ResourceClaimTemplate", claim["resourceClaimTemplateName"]))
    if pod.get("serviceAccountName", "default") != "default":
        named.add(("ServiceAccount", pod["serviceAccountName"]))
    return named
