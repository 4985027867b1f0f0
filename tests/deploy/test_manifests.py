"""Manifests beside the chart: EKS and KubeRay."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from rufus_serve.config.sources import resolve
from tests.deploy.chart import CHART, PROFILES, ROOT, TOOLS, one, template
from tests.deploy.conftest import need

# Read, not imported: Ray is not needed for these tests.
AGENT = (ROOT / "src" / "rufus_serve" / "cluster" / "ray_agent.py").read_text()
RESOURCE, TOKEN_VARIABLE, ADDRESS_VARIABLE = (
    re.search(rf'^{name} = "(\w+)"', AGENT, re.MULTILINE).group(1)
    for name in ("RESOURCE", "TOKEN_VARIABLE", "ADDRESS_VARIABLE")
)
EKS, KUBERAY = ROOT / "deploy" / "eks", ROOT / "deploy" / "kuberay" / "raycluster.yaml"


def documents(file: Path):
    return [each for each in yaml.safe_load_all(file.read_text()) if each]


def fits_kubernetes(manifests, folder: Path):
    file = folder / "manifests.yaml"
    # Aliases would be written out again by the dumper.
    file.write_text("---\n".join(yaml.safe_dump(each) for each in manifests))
    done = subprocess.run(
        [need("kubernetes-validate"), "--strict", str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_cluster_can_run_the_profile():
    cluster = documents(EKS / "cluster.yaml")[0]
    (group,) = [each for each in cluster["managedNodeGroups"] if each["name"] == "trn1"]
    assert group["efaEnabled"]
    assert group["privateNetworking"]
    assert len(group["availabilityZones"]) == 1
    profile = yaml.safe_load(PROFILES["trn1.32xlarge"].read_text())
    selector = profile["placement"]["nodeSelector"]
    assert selector["node.kubernetes.io/instance-type"] == group["instanceType"]
    tolerated = {each["key"] for each in profile["placement"]["tolerations"]}
    assert tolerated == {each["key"] for each in group["taints"]}
    assert group["maxSize"] >= profile["config"]["nodes"]
    assert group["minSize"] == 0


def test_karpenter_leaves_serving_nodes_alone():
    pool, node_class = documents(EKS / "karpenter.yaml")
    assert pool["spec"]["template"]["spec"]["expireAfter"] == "Never"
    assert pool["spec"]["disruption"]["consolidationPolicy"] == "WhenEmpty"
    reference = pool["spec"]["template"]["spec"]["nodeClassRef"]
    assert reference["name"] == node_class["metadata"]["name"]
    assert node_class["spec"]["instanceStorePolicy"] == "RAID0"


def test_the_file_system_outlives_its_stack():
    (stack,) = documents(EKS / "fsx.yaml")
    files = stack["Resources"]["Files"]
    assert files["DeletionPolicy"] == files["UpdateReplacePolicy"] == "Retain"


def test_the_values_of_the_runbook_render(helm):
    done = subprocess.run(
        [
            str(TOOLS / "bin" / "helm4"),
            "template",
            "llama",
            str(CHART),
            "-f",
            str(PROFILES["trn1.32xlarge"]),
            "-f",
            str(EKS / "values.yaml"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rendered = [each for each in yaml.safe_load_all(done.stdout) if each]
    claim = one(rendered, "PersistentVolumeClaim")["metadata"]["name"]
    (job,) = documents(EKS / "load-model.yaml")
    volumes = job["spec"]["template"]["spec"]["volumes"]
    assert volumes[0]["persistentVolumeClaim"]["claimName"] == claim


def test_the_load_job_fits_the_schemas_of_kubernetes(tmp_path):
    fits_kubernetes(documents(EKS / "load-model.yaml"), tmp_path)


def ray_pods():
    (cluster,) = [each for each in documents(KUBERAY) if each["kind"] == "RayCluster"]
    spec = cluster["spec"]
    return spec, [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def test_pods_of_the_ray_cluster_fit_the_schemas_of_kubernetes(tmp_path):
    _, groups = ray_pods()
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, **each["template"]}
        for each in groups
    ]
    rest = [each for each in documents(KUBERAY) if each["kind"] != "RayCluster"]
    fits_kubernetes(pods + rest, tmp_path)


def test_the_ray_cluster_offers_one_follower_per_worker(tmp_path):
    spec, _ = ray_pods()
    (config,) = [each for each in documents(KUBERAY) if each["kind"] == "ConfigMap"]
    file = tmp_path / "config.yaml"
    file.write_text(config["data"]["config.yaml"])
    settings = resolve(file=file, environ={}, flags={}).config
    (workers,) = spec["workerGroupSpecs"]
    assert workers["replicas"] == workers["minReplicas"] == settings.nodes
    assert RESOURCE in workers["rayStartParams"]["resources"]
    assert RESOURCE not in str(spec["headGroupSpec"]["rayStartParams"])
    (container,) = workers["template"]["spec"]["containers"]
    assert {TOKEN_VARIABLE, ADDRESS_VARIABLE} <= {each["name"] for each in container["env"]}


def test_the_ray_cluster_runs_the_locked_version():
    spec, _ = ray_pods()
    lock = (ROOT / "requirements" / "follower.txt").read_text().splitlines()
    assert f"ray=={spec['rayVersion']}" in lock


@pytest.mark.parametrize("name", ["rendered", "listed"])
def test_the_chart_does_not_own_the_crd(helm, name):
    if name == "rendered":
        assert "CustomResourceDefinition" not in template(values=PROFILES["everything"]).stdout
    else:
        assert not (CHART / "crds").exists()
