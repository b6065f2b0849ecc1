"""Whether the pods of one job find each other: address, certificates, token, and the network policy."""

from urllib.parse import urlsplit

from objects import need

# Flags that a coordinator and all who dial it share.
SHARED = ("--token-file", "--tls-cert", "--tls-key", "--tls-ca")

# The pages that the kubelet asks for.
PROBES = {"startupProbe": "/healthz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}


def check_monitors(found, container, tls, token):
    """Checks that a monitor of pods finds the coordinator's metrics and may read them."""
    for document in found:
        if document["kind"] == "PodMonitor":
            chosen = document["spec"]["selector"]["matchLabels"].items()
            picked = [each for each in labels(found) if chosen <= each.items()]
            names = [each.get("app.kubernetes.io/component") for each in picked]
            need(names == ["coordinator"], f"the monitor selects {names}")
            (endpoint,) = document["spec"]["podMetricsEndpoints"]
            need(endpoint.get("path") == "/metrics", f"the monitor asks {endpoint.get('path')} in place of /metrics")
            ports = [each["name"] for each in container["ports"]]
            need(endpoint["port"] in ports, f"the monitor asks port {endpoint['port']}, which is none of {ports}")
            need((endpoint["scheme"] == "https") == tls == ("tlsConfig" in endpoint), "the monitor's scheme does not fit the certificates")
            need(("authorization" in endpoint) == token, "the monitor and the coordinator do not agree on a token")


def check_wiring(found, pods):
    """Checks the pods of one rendered job, of which one is the coordinator's."""
    arguments = [container["args"] for pod in pods for container in pod["containers"]]
    (coordinator,) = [words for words in arguments if words[0] == "coordinator"]
    port = flags(coordinator)["--listen"].rsplit(":", 1)[1]
    (container,) = [c for pod in pods for c in pod["containers"] if c["args"] is coordinator]
    ports = [str(each["containerPort"]) for each in container["ports"]]
    need(ports == [port], f"the coordinator listens on {port}, but its container says {ports}")
    tls = "--tls-cert" in flags(coordinator)
    for name, path in PROBES.items():
        probe = container[name]
        (kind,) = [kind for kind in ("httpGet", "tcpSocket") if kind in probe]
        need(str(probe[kind]["port"]) == port, f"the {name} asks another port")
        need(kind == ("tcpSocket" if tls else "httpGet"), f"the kubelet has no certificate for the {name}")
        need(tls or probe[kind]["path"] == path, f"the {name} asks another page than {path}")
    check_monitors(found, container, tls, "--token-file" in flags(coordinator))
    need(tls or "--insecure" in coordinator, "the coordinator would refuse to listen without certificates")
    hosts = addresses(found)
    for words in arguments:
        if words is coordinator:
            continue
        role, given = words[0], flags(words)
        url = urlsplit(given["--coordinator"] if role == "worker" else words[1])
        need(url.hostname in hosts, f"{role}: {url.hostname} is none of {sorted(hosts)}")
        need(str(url.port) == port, f"{role}: dials port {url.port} in place of {port}")
        need(url.scheme == ("https" if tls else "http"), f"{role}: the URL's scheme does not fit the certificates")
        need(tls or "--insecure" in words, f"{role}: would refuse to dial without certificates")
        if role == "worker":
            probe = container["startupProbe"]
            wait = seconds(given["--patience"])
            need(wait + probe["periodSeconds"] > probe["periodSeconds"] * probe["failureThreshold"], "worker: gives up while the coordinator checks the job")
            forms = [flags(each).get("--log-format") for each in (words, coordinator)]
            need(forms[0] == forms[1], f"worker: logs as {forms[0]}, but the coordinator as {forms[1]}")
        for flag in SHARED:
            need((flag in given) == (flag in flags(coordinator)), f"{role}: {flag} is not given to both sides")
        for certificate in [document for document in found if document["kind"] == "Certificate"]:
            need(url.hostname in certificate["spec"]["dnsNames"], f"{role}: no certificate for {url.hostname}")
            need("localhost" in certificate["spec"]["dnsNames"], "no certificate for localhost, which a forwarded port has")
            check_lifetime(certificate["spec"])


def check_lifetime(certificate):
    """A process reads its certificate when it starts: one that is as good as over would cut it off."""
    hours = {key: int(certificate[key].removesuffix("h")) for key in ("duration", "renewBefore")}
    need(2 * hours["renewBefore"] in (hours["duration"], hours["duration"] - 1), f"a certificate of {hours} is renewed at another time than at its half")


def flags(words):
    """Flags of the form --NAME=VALUE."""
    return dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)


def seconds(text):
    """A length of time such as 90min."""
    number = text.rstrip("dhmins")
    return int(number) * {"s": 1, "min": 60, "h": 3600, "d": 86400}[text.removeprefix(number)]


def addresses(found):
    """The names under which the coordinator can be found in its namespace."""
    names = set()
    for document in found:
        name, spec = document["metadata"]["name"], document.get("spec", {})
        if document["kind"] == "JobSet":
            network = spec.get("network", {})
            if network.get("enableDNSHostnames", True) and network.get("publishNotReadyAddresses", True):
                names.add(f"{name}-coordinator-0-0.{network.get('subdomain', name)}")
        if document["kind"] == "Service":
            need(spec.get("publishNotReadyAddresses"), f"{name}: workers cannot wait for a coordinator that is not ready")
            selected = [pod_labels for pod_labels in labels(found) if spec["selector"].items() <= pod_labels.items()]
            need(len(selected) == 1, f"{name}: selects {len(selected)} kinds of pods")
            names.add(name)
        if document["kind"] == "NetworkPolicy":
            chosen = spec["podSelector"]["matchLabels"].items()
            need(all(chosen <= each.items() for each in labels(found)), f"{name}: does not cover every pod")
    return names


def labels(found):
    """The labels of each kind of pod."""
    every = []
    for document in found:
        if document["kind"] == "Job":
            every.append(document["spec"]["template"]["metadata"]["labels"])
        elif document["kind"] == "JobSet":
            jobs = [job["template"]["spec"] for job in document["spec"]["replicatedJobs"]]
            every += [job["template"]["metadata"]["labels"] for job in jobs]
        elif document["kind"] == "Pod":
            every.append(document["metadata"]["labels"])
    return every
