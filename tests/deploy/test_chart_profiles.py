"""Every shipped profile: its manifests, their schemas, and the settings they lead to."""

import base64
import json
import os
import shutil
import subprocess
import time
from functools import cache
from pathlib import Path

import pytest
import yaml

from rufus_serve.config import ServeConfig
from rufus_serve.config.keys import fingerprint, read_keys
from rufus_serve.config.ports import ports
from rufus_serve.config.sources import resolve
from tests.deploy.chart import CHART, GOLDEN, PROFILES, ROOT, SECRETS, TOOLS, one, render
from tests.deploy.conftest import need, need_module
from tests.deploy.lws_schema import LWS_SCHEMA

WORKLOAD = "LeaderWorkerSet"
NEURON, EFA = "aws.amazon.com/neuron", "vpc.amazonaws.com/efa"
CRD_GROUPS = (
    "leaderworkerset", "monitoring.coreos", "keda", "inference.networking", "gateway.networking",
)  # fmt: skip


def containers(lws: dict, template: str) -> dict[str, dict]:
    spec = lws["spec"]["leaderWorkerTemplate"][template]["spec"]
    return {each["name"]: each for each in spec["containers"]}


def test_lint_finds_nothing(major):
    done = subprocess.run(
        [need(f"helm{major}"), "lint", "--strict", str(CHART)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_renders_to_its_golden_file(major, profile):
    kept = (GOLDEN / f"{profile}.yaml").read_text()
    documents = [document for document in yaml.safe_load_all(kept) if document]
    expected = sorted(documents, key=lambda each: (each["kind"], each["metadata"]["name"]))
    assert render(*SECRETS, values=PROFILES[profile], major=major) == expected, "run `make golden`"


@pytest.mark.parametrize("profile", PROFILES)
def test_core_manifests_fit_the_schemas_of_kubernetes(helm, profile, tmp_path):
    core = [
        document
        for document in render(values=PROFILES[profile])
        if not document["apiVersion"].startswith(CRD_GROUPS)
    ]
    file = tmp_path / "core.yaml"
    file.write_text(yaml.safe_dump_all(core))
    done = subprocess.run(
        [need("kubernetes-validate"), "--strict", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_pod_templates_fit_the_schema_of_pods(helm, profile, tmp_path):
    lws = one(render(values=PROFILES[profile]), "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    pods = [
        {"apiVersion": "v1", "kind": "Pod", **lws[name], "metadata": {"name": "pod"}}
        for name in ("leaderTemplate", "workerTemplate")
    ]
    file = tmp_path / "pods.yaml"
    file.write_text(yaml.safe_dump_all(pods))
    done = subprocess.run(
        [need("kubernetes-validate"), "--strict", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("profile", PROFILES)
def test_the_group_fits_the_fields_of_leaderworkerset_that_we_use(helm, profile):
    jsonschema = need_module("jsonschema")
    jsonschema.validate(one(render(values=PROFILES[profile]), "LeaderWorkerSet"), LWS_SCHEMA)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_group_fits_the_crd_of_leaderworkerset(helm, profile):
    jsonschema = need_module("jsonschema")
    path = TOOLS / "lws-crds.yaml"
    if not path.exists():
        # No package registry has it; GitHub's runners reach the one that does.
        (pytest.fail if "GITHUB_ACTIONS" in os.environ else pytest.skip)(f"no {path}")
    lws = one(render(values=PROFILES[profile]), "LeaderWorkerSet")
    jsonschema.validate(lws, crd_schema(path))


@cache
def crd_schema(path: Path):
    crd = next(
        each
        for each in yaml.load_all(path.read_text(), Loader=yaml.CSafeLoader)
        if each and each["spec"]["names"]["kind"] == "LeaderWorkerSet"
    )
    (schema,) = [each["schema"]["openAPIV3Schema"] for each in crd["spec"]["versions"]]
    return closed(schema)


def closed(node):
    """The schema with unknown fields refused, as the API server prunes them silently."""
    if isinstance(node, list):
        return [closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    node = {name: closed(value) for name, value in node.items()}
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    opens = "additionalProperties" in node or node.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(node.get("properties"), dict) and node.get("type") == "object" and not opens:
        node["additionalProperties"] = False
    return node


@pytest.mark.parametrize("profile", PROFILES)
def test_the_settings_of_a_profile_are_accepted_by_serve(helm, profile, tmp_path):
    maps = [each for each in render(values=PROFILES[profile]) if each["kind"] == "ConfigMap"]
    (text,) = [
        each["data"]["config.yaml"] for each in maps if "config.yaml" in each.get("data", {})
    ]
    file = tmp_path / "config.yaml"
    file.write_text(text)
    config = resolve(file=file, environ={}, flags={}).config
    assert config.cluster.token_file == Path("/etc/rufus-serve/token/token")
    assert config.host == "0.0.0.0"


@pytest.mark.parametrize(
    ("profile", "sets", "size", "devices", "interfaces"),
    [
        ("trn1.32xlarge", [], 2, 16, 8),
        ("trn1.32xlarge", ["config.nodes=4"], 4, 16, 8),
        ("trn1.32xlarge", ["config.nodes=1"], 1, 16, None),
        ("trn1.32xlarge", ["config.nodes=1", "config.groups=2"], 2, 16, None),
        ("trn1.32xlarge", ["config.nodes=2", "config.groups=2"], 4, 16, 8),
        ("trn1n.32xlarge", [], 2, 16, 16),
        ("trn1.2xlarge", [], 1, 1, None),
        ("trn1.32xlarge-halves", [], 1, 16, None),
        ("cpu", [], 2, None, None),
    ],
)
def test_a_group_asks_for_the_devices_it_drives(helm, profile, sets, size, devices, interfaces):
    lws = one(render(*sets, values=PROFILES[profile]), "LeaderWorkerSet")
    assert lws["spec"]["leaderWorkerTemplate"]["size"] == size
    leader_pod = containers(lws, "leaderTemplate")
    for follower in (leader_pod["follower"], containers(lws, "workerTemplate")["follower"]):
        for kind in ("requests", "limits"):
            assert follower["resources"][kind].get(NEURON) == devices
            assert follower["resources"][kind].get(EFA) == interfaces
    assert NEURON not in leader_pod["leader"]["resources"]["limits"]


def test_followers_find_the_leader_of_their_own_group(helm):
    lws = one(render(values=PROFILES["cpu"]), "LeaderWorkerSet")
    worker = containers(lws, "workerTemplate")
    assert set(worker) == {"follower"}
    assert worker["follower"]["args"][:2] == ["--leader", "$(LWS_LEADER_ADDRESS):6379"]
    beside = containers(lws, "leaderTemplate")["follower"]
    assert beside["args"][:2] == ["--leader", "$(POD_IP):6379"]


def test_two_followers_share_a_pod_but_not_a_port(helm):
    documents = render(values=PROFILES["trn1.32xlarge-halves"])
    follower = containers(one(documents, "LeaderWorkerSet"), "leaderTemplate")["follower"]
    assert follower["command"] == ["run-followers", "2"]
    config = yaml.safe_load(one(documents, "ConfigMap")["data"]["config.yaml"])
    assert config["cluster"]["step_port"] == 0


def test_clients_reach_leaders_alone(helm):
    documents = render(*SECRETS, values=PROFILES["cpu"])
    selector = one(documents, "Service")["spec"]["selector"]
    assert selector["leaderworkerset.sigs.k8s.io/worker-index"] == "0"
    name = one(documents, "LeaderWorkerSet")["metadata"]["name"]
    assert selector["leaderworkerset.sigs.k8s.io/name"] == name
    # LeaderWorkerSet makes a headless Service of its own name.
    assert one(documents, "Service")["metadata"]["name"] != name


def of_groups(documents):
    """The policy of the pods that groups are made of."""
    policies = [each["spec"] for each in documents if each["kind"] == "NetworkPolicy"]
    (found,) = [each for each in policies if "matchExpressions" not in each["podSelector"]]
    return found


def allowed_within_the_release(rules, side):
    """Ports that the policy's rule for pods of groups names."""
    (rule,) = [each for each in rules if "'group'" in str(each.get(side)) and len(each) == 2]
    return {range(each["port"], each.get("endPort", each["port"]) + 1) for each in rule["ports"]}


def test_pods_of_a_group_reach_each_other_by_the_firewall_tables_ports(helm, tmp_path):
    sets = ["config.cluster.rendezvous_port=7000", "networkPolicy.clients=null"]
    documents = render(*sets, values=PROFILES["cpu"])
    file = tmp_path / "config.yaml"
    file.write_text(one(documents, "ConfigMap")["data"]["config.yaml"])
    expected = set(ports(resolve(file=file, environ={}, flags={}).config).values())
    policy = of_groups(documents)
    assert allowed_within_the_release(policy["ingress"], "from") == expected
    assert allowed_within_the_release(policy["egress"], "to") == expected


@pytest.mark.parametrize("profile", ["trn1.32xlarge", "trn1.32xlarge-halves"])
def test_the_neuron_runtime_may_use_any_port_within_the_release(helm, profile):
    policy = of_groups(render(values=PROFILES[profile]))
    assert allowed_within_the_release(policy["egress"], "to") == {range(1, 65536)}


def test_the_firewall_table_has_every_port(helm):
    table = (ROOT / "deploy" / "README.md").read_text()
    for span in ports(ServeConfig(model="m")).values():
        last = f"\N{EN DASH}{span[-1]}" if len(span) > 1 else ""
        assert f"| {span[0]}{last}/tcp |" in table


def test_probes_and_grace_follow_the_deadlines(helm):
    sets = ["config.timeouts.load_s=1000", "config.timeouts.warm_up_s=500"]
    sets += ["config.timeouts.join_s=60", "config.timeouts.leader_start_s=180"]
    sets += ["config.timeouts.shutdown_grace_s=40", "drain.preStopSeconds=20"]
    lws = one(render(*sets), "LeaderWorkerSet")
    pods = containers(lws, "leaderTemplate")
    probe = pods["leader"]["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 60 + 1000 + 500 + 180
    assert pods["leader"]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "20"]
    assert pods["follower"]["lifecycle"]["preStop"]["exec"]["command"][-1] == "60"
    for template in ("leaderTemplate", "workerTemplate"):
        spec = lws["spec"]["leaderWorkerTemplate"][template]["spec"]
        assert spec["terminationGracePeriodSeconds"] == 90


def test_a_follower_is_stopped_once_ray_has_left_it(helm, tmp_path):
    lws = one(render("drain.preStopSeconds=2", "config.timeouts.shutdown_grace_s=0"), WORKLOAD)
    hook = containers(lws, "workerTemplate")["follower"]["lifecycle"]["preStop"]["exec"]["command"]
    stand_in = shutil.copy(shutil.which("sleep"), tmp_path / "stand-in-rl")
    hook = [word.replace("raylet", "stand-in-rl") for word in hook]
    assert seconds_of(hook) < 0.5
    with subprocess.Popen([stand_in, "30"]) as raylet:
        assert 1.5 < seconds_of(hook) < 5.0
        raylet.kill()


def seconds_of(command):
    began = time.monotonic()
    subprocess.run(command, check=True, timeout=30)
    return time.monotonic() - began


def test_secrets_are_not_readable_by_everyone(helm):
    lws = one(render(), "LeaderWorkerSet")
    spec = lws["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["spec"]
    modes = [each["secret"]["defaultMode"] for each in spec["volumes"] if "secret" in each]
    assert modes == [0o440, 0o440]


def test_every_container_is_confined(helm):
    for profile in PROFILES.values():
        for pod in pod_specs(render(values=profile)):
            if [each["name"] for each in pod["containers"]] == ["prepare"]:
                continue
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for each in pod["containers"] + pod.get("initContainers", []):
                confined = each["securityContext"]
                assert confined["readOnlyRootFilesystem"] is True
                assert confined["allowPrivilegeEscalation"] is False
                assert confined["capabilities"] == {"drop": ["ALL"]}
                assert each["resources"]["limits"]["memory"]


def pod_specs(documents):
    for document in documents:
        if document["kind"] == "LeaderWorkerSet":
            group = document["spec"]["leaderWorkerTemplate"]
            yield group["leaderTemplate"]["spec"]
            yield group["workerTemplate"]["spec"]
        elif document["kind"] in ("Deployment", "Job"):
            yield document["spec"]["template"]["spec"]


def test_autoscalers_own_the_number_of_groups(helm):
    assert one(render(), "LeaderWorkerSet")["spec"]["replicas"] == 1
    documents = render("autoscaling.kind=hpa")
    assert "replicas" not in one(documents, "LeaderWorkerSet")["spec"]
    target = one(documents, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert target["kind"] == "LeaderWorkerSet"


def test_generated_keys_are_kept_as_hashes_and_prometheus_may_only_scrape(helm, tmp_path):
    secrets = {each["metadata"]["name"]: each for each in render() if each["kind"] == "Secret"}
    data = {
        name: base64.b64decode(each).decode()
        for name, each in secrets["demo-rufus-serve-api-keys"]["data"].items()
    }
    file = tmp_path / "keys"
    file.touch(mode=0o600)
    file.write_text(data["keys"])
    found = {key.sha256: key.scopes for key in read_keys(file)}
    assert found == {
        fingerprint(data["client-key"]): ("infer",),
        fingerprint(data["scrape-key"]): ("metrics",),
    }
    assert "sk-" not in data["keys"]


def test_checkov_finds_nothing_that_the_readme_does_not_justify(helm, tmp_path):
    skips = yaml.safe_load((CHART / "checkov-skips.yaml").read_text())["skip-check"]
    manifest = tmp_path / "all.yaml"
    manifest.write_text(yaml.safe_dump_all(scannable()))
    assert checkov_findings(manifest, skips) == []
    readme = (CHART / "README.md").read_text()
    assert [skip for skip in skips if skip not in readme] == []


def scannable():
    """All that the fullest profile renders to, with pods in a kind that checkov knows."""
    pods = []
    for number, spec in enumerate(pod_specs(render(*SECRETS, values=PROFILES["everything"]))):
        if spec["containers"][0]["name"] == "prepare":
            continue  # Root on purpose; the README says why.
        pods.append(
            {
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": {"name": f"pod-{number}", "namespace": "models"},
                "spec": {"selector": {}, "template": {"metadata": {}, "spec": spec}},
            }
        )
    rest = [
        each
        for each in render(*SECRETS, values=PROFILES["everything"])
        if each["kind"] not in ("LeaderWorkerSet", "Deployment", "Job")
    ]
    return pods + rest


def checkov_findings(manifest, skips):
    done = subprocess.run(
        [
            need("checkov"),
            "--framework",
            "kubernetes",
            "--file",
            str(manifest),
            "--output",
            "json",
            "--quiet",
            "--skip-download",
            "--skip-check",
            ",".join(skips),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    report = json.loads(done.stdout)
    return [
        f"{each['check_id']} {each['check_name']}: {each['resource']}"
        for each in report.get("results", {}).get("failed_checks", [])
    ]
