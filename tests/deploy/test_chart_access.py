"""Ways in and what watches: ingress, route, router, policy, monitors, autoscaling."""

import json
import shutil
import subprocess

import pytest
import yaml

from tests.deploy.chart import PROFILES, ROOT, TOOLS, one, render
from tests.deploy.conftest import absent

EVERYTHING = PROFILES["everything"]
OPEN = "networkPolicy.enabled=false"
CRDS = ("gateway.networking.k8s.io", "karpenter", "keda.sh", "monitoring.coreos.com")


def named(documents, kind: str, end: str = ""):
    (found,) = [
        each
        for each in documents
        if each["kind"] == kind and each["metadata"]["name"].endswith(end)
    ]
    return found


def test_what_other_controllers_read_fits_their_crds(helm):
    node = shutil.which("node")
    if node is None or not (TOOLS / "node_modules" / "@kubernetes-models").exists():
        absent("the validators of CRDs are not here: run deploy/helm/get-tools.sh")
    karpenter = (ROOT / "deploy" / "eks" / "karpenter.yaml").read_text()
    documents = [*render(values=EVERYTHING), *yaml.safe_load_all(karpenter)]
    documents = [each for each in documents if each["apiVersion"].startswith(CRDS)]
    kinds = {each["kind"] for each in documents}
    assert {"HTTPRoute", "ScaledObject", "PodMonitor", "PrometheusRule", "NodePool"} <= kinds
    done = subprocess.run(
        [node, str(ROOT / "tests" / "deploy" / "crd_check.mjs"), str(TOOLS)],
        input=json.dumps(documents), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""


def test_an_alb_spreads_by_open_requests_and_lets_streams_last(helm):
    sets = ["ingress.enabled=true", OPEN, "config.limits.request_timeout_s=1800"]
    documents = render(*sets, "config.timeouts.shutdown_grace_s=120", "ingress.hosts[0]=a.example")
    ingress = one(documents, "Ingress")
    notes = {
        key.removeprefix("alb.ingress.kubernetes.io/"): value
        for key, value in ingress["metadata"]["annotations"].items()
    }
    attributes = dict(pair.split("=") for pair in notes["target-group-attributes"].split(","))
    assert attributes["load_balancing.algorithm.type"] == "least_outstanding_requests"
    assert attributes["stickiness.enabled"] == "false"
    assert int(attributes["deregistration_delay.timeout_seconds"]) >= 120
    assert notes["target-type"] == "ip"
    assert notes["healthcheck-path"] == "/ready"
    assert notes["load-balancer-attributes"] == "idle_timeout.timeout_seconds=1860"
    assert notes["scheme"] == "internal"
    (rule,) = ingress["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": "demo-rufus-serve-api", "port": {"name": "http"}}
    assert rule["host"] == "a.example"


def test_nginx_neither_buffers_nor_repeats(helm):
    sets = ["ingress.enabled=true", "ingress.kind=nginx", OPEN, "ingress.annotations.a=b"]
    notes = one(render(*sets), "Ingress")["metadata"]["annotations"]
    start = "nginx.ingress.kubernetes.io/"
    assert notes[f"{start}proxy-buffering"] == notes[f"{start}proxy-next-upstream"] == "off"
    assert notes[f"{start}proxy-read-timeout"] == "3660"
    assert notes["a"] == "b"


@pytest.mark.parametrize(
    ("sets", "backend"),
    [
        ([], {"name": "demo-rufus-serve-api", "port": 8000}),
        (["router.enabled=true"], {"name": "demo-rufus-serve-router", "port": 8000}),
        (
            [
                "inferencePool.enabled=true",
                "inferencePool.endpointPicker.name=epp",
                "apiKeys.enabled=false",
            ],
            {
                "group": "inference.networking.k8s.io",
                "kind": "InferencePool",
                "name": "demo-rufus-serve",
            },
        ),
    ],
)
def test_a_route_leads_to_whoever_spreads_requests(helm, sets, backend):
    route = one(render("httpRoute.enabled=true", "httpRoute.parentRefs[0].name=g", OPEN, *sets),
                "HTTPRoute")["spec"]  # fmt: skip
    (rule,) = route["rules"]
    assert rule["backendRefs"] == [backend]
    assert rule["timeouts"]["request"] == "3660s"


def test_leaders_with_a_certificate_are_asked_by_https(helm):
    documents = render("tls.existingSecret=certificate", "metrics.monitor=pod",
                       "ingress.enabled=true", OPEN)  # fmt: skip
    group = one(documents, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    leader = group["leaderTemplate"]["spec"]["containers"][0]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert leader[probe]["httpGet"]["scheme"] == "HTTPS"
    http = yaml.safe_load(one(documents, "ConfigMap")["data"]["config.yaml"])["http"]
    (mount,) = [each for each in leader["volumeMounts"] if each["name"] == "tls"]
    assert http["tls_certificate"] == f"{mount['mountPath']}/tls.crt"
    (endpoint,) = one(documents, "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["scheme"] == "https"
    notes = one(documents, "Ingress")["metadata"]["annotations"]
    assert notes["alb.ingress.kubernetes.io/backend-protocol"] == "HTTPS"


def admitted_to(policy) -> dict[str, set[int]]:
    """Ports by the peers that may reach them, single ones alone."""
    return {
        json.dumps(peer, sort_keys=True): {each["port"] for each in rule["ports"]}
        for rule in policy["spec"]["ingress"]
        for peer in rule["from"]
    }


def test_the_policies_admit_load_balancers_scrapers_and_pod_identity(helm):
    sets = ("router.enabled=true", "tls.existingSecret=")
    documents = render(*sets, values=EVERYTHING)
    groups = named(documents, "NetworkPolicy", "rufus-serve")
    others = named(documents, "NetworkPolicy", "-others")
    balancer = json.dumps({"ipBlock": {"cidr": "10.42.0.0/16"}})
    assert admitted_to(groups)[balancer] == {8000}
    assert admitted_to(others)[balancer] == {8080}
    assert {each["port"] for each in others["spec"]["ingress"][-1]["ports"]} == {8080, 29000}
    agent = {"ipBlock": {"cidr": "169.254.170.23/32"}}
    for policy in (groups, others):
        (rule,) = [each for each in policy["spec"]["egress"] if agent in each.get("to", [])]
        assert rule["ports"] == [{"protocol": "TCP", "port": 80}]


def test_https_may_be_narrowed_to_named_peers(helm):
    def https(*sets):
        policies = [each for each in render(*sets) if each["kind"] == "NetworkPolicy"]
        assert len(policies) == 2
        return [
            rule.get("to")
            for policy in policies
            for rule in policy["spec"]["egress"]
            if rule["ports"] == [{"protocol": "TCP", "port": 443}]
        ]

    assert https() == [None, None]
    storage = {"ipBlock": {"cidr": "10.0.0.0/16"}}
    sets = "networkPolicy.httpsTo[0].ipBlock.cidr=10.0.0.0/16"
    assert https(sets) == [[storage], [storage]]


def test_what_faces_clients_reaches_the_api_of_a_group_and_nothing_else_of_it(helm):
    documents = render("router.enabled=true", "tls.existingSecret=", values=EVERYTHING)
    groups = named(documents, "NetworkPolicy", "rufus-serve")["spec"]
    component = "app.kubernetes.io/component"
    assert groups["podSelector"]["matchLabels"][component] == "group"
    reached = {
        peer["podSelector"]["matchLabels"].get(component): rule["ports"]
        for rule in groups["ingress"]
        for peer in rule["from"]
        if "app.kubernetes.io/instance" in str(peer)
    }
    assert set(reached) == {"group", "router"}
    assert reached["router"] == [{"protocol": "TCP", "port": 8000}]
    others = named(documents, "NetworkPolicy", "-others")["spec"]
    (own,) = [rule for rule in others["egress"] if "podSelector" in str(rule)]
    assert own["ports"] == [{"protocol": "TCP", "port": 8000}]
    (expression,) = others["podSelector"]["matchExpressions"]
    assert expression == {"key": component, "operator": "NotIn", "values": ["group"]}
    pods = [each["spec"]["template"]["metadata"]["labels"] for each in documents
            if each["kind"] in ("Deployment", "Job")]  # fmt: skip
    assert all(labels[component] != "group" for labels in pods)


def router_of(*sets: str):
    documents = render("router.enabled=true", *sets)
    pod = named(documents, "Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return documents, pod, container


def test_a_router_lasts_as_long_as_the_streams_through_it(helm):
    documents, pod, container = router_of("config.timeouts.shutdown_grace_s=300")
    leader = one(documents, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
    grace = leader["spec"]["terminationGracePeriodSeconds"]
    assert pod["terminationGracePeriodSeconds"] == grace > 300
    arguments = container["args"]
    assert "--request-timeout-secs=3660" in arguments
    assert "--disable-retries" in arguments
    assert "--policy=cache_aware" in arguments
    assert "--prometheus-host=0.0.0.0" in arguments
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "15"]


def test_a_router_is_spread_guarded_and_watched(helm):
    documents, pod, container = router_of("metrics.monitor=pod", OPEN)
    assert {each["topologyKey"] for each in pod["topologySpreadConstraints"]} == {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    }
    assert named(documents, "PodDisruptionBudget", "-router")["spec"]["maxUnavailable"] == 1
    (endpoint,) = named(documents, "PodMonitor", "-router")["spec"]["podMetricsEndpoints"]
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert f"--prometheus-port={ports[endpoint['port']]}" in container["args"]


def test_the_routers_arguments_are_its_own(helm):
    """The very program refuses what it does not know, before it starts."""
    from tests.deploy.conftest import need

    _, _, container = router_of()
    done = subprocess.run(
        [need("vllm-router"), *container["args"], "--help"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_keda_keeps_groups_when_prometheus_is_gone(helm):
    spec = one(render("autoscaling.kind=keda", "autoscaling.prometheusUrl=http://p",
                      "autoscaling.maxReplicas=3"), "ScaledObject")["spec"]  # fmt: skip
    assert spec["fallback"] == {"failureThreshold": 4, "replicas": 3}
    assert "idleReplicaCount" not in spec
    everything = one(render(values=EVERYTHING), "ScaledObject")["spec"]
    assert everything["idleReplicaCount"] == 0
    assert [each["type"] for each in everything["triggers"]] == ["prometheus", "cron"]
    assert everything["triggers"][0]["authenticationRef"] == {"name": "prometheus"}
