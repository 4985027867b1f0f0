"""Manifests beside the chart: EKS and KubeRay."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from rufus_serve.config.sources import resolve
from tests.deploy.chart import CHART, PROFILES, ROOT, one, render, template
from tests.deploy.conftest import need

# Read, not imported: Ray is not needed for these tests.
AGENT = "".join(
    (ROOT / "src" / "rufus_serve" / "cluster" / name).read_text()
    for name in ("ray_agent.py", "ray_join.py")
)
RESOURCE, TOKEN_VARIABLE, ADDRESS_VARIABLE = (
    re.search(rf'^{name} = "(\w+)"', AGENT, re.MULTILINE).group(1)
    for name in ("RESOURCE", "TOKEN_VARIABLE", "ADDRESS_VARIABLE")
)
EKS, KUBERAY = ROOT / "deploy" / "eks", ROOT / "deploy" / "kuberay" / "raycluster.yaml"


def documents_of(file: Path):
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


def cluster_groups():
    return documents_of(EKS / "cluster.yaml")[0]["managedNodeGroups"]


def test_the_cluster_can_run_the_profile():
    (group,) = [each for each in cluster_groups() if each["name"] == "trn1"]
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
    pool, node_class = documents_of(EKS / "karpenter.yaml")
    assert pool["spec"]["template"]["spec"]["expireAfter"] == "Never"
    assert pool["spec"]["disruption"]["consolidationPolicy"] == "WhenEmpty"
    reference = pool["spec"]["template"]["spec"]["nodeClassRef"]
    assert reference["name"] == node_class["metadata"]["name"]
    assert node_class["spec"]["instanceStorePolicy"] == "RAID0"


def test_the_file_system_outlives_its_stack():
    (stack,) = documents_of(EKS / "fsx.yaml")
    files = stack["Resources"]["Files"]
    assert files["DeletionPolicy"] == files["UpdateReplacePolicy"] == "Retain"


@pytest.mark.parametrize("values", sorted(EKS.glob("values-*.yaml")), ids=lambda file: file.stem)
def test_the_values_of_the_runbook_render(helm, values):
    documents = render(values=[PROFILES["trn1.32xlarge"], values])
    (group,) = [each for each in cluster_groups() if each["name"] == "compile"]
    for job in (each for each in documents if each["kind"] == "Job"):
        assert job["spec"]["template"]["spec"]["nodeSelector"] == group["labels"]
    assert one(documents, "ServiceAccount")["metadata"]["name"] in {
        each["serviceAccountName"]
        for each in documents_of(EKS / "cluster.yaml")[0]["iam"]["podIdentityAssociations"]
    }


def test_nodes_let_pods_pin_memory():
    """EFA registers memory; a pod cannot raise the limit that it inherits from containerd."""
    (trn1,) = [each for each in cluster_groups() if each["name"] == "trn1"]
    assert "LimitMEMLOCK=infinity" in "".join(trn1["preBootstrapCommands"])
    _, node_class = documents_of(EKS / "karpenter.yaml")
    assert "LimitMEMLOCK=infinity" in node_class["spec"]["userData"]


def ray_pods():
    (cluster,) = [each for each in documents_of(KUBERAY) if each["kind"] == "RayCluster"]
    spec = cluster["spec"]
    return spec, [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def test_pods_of_the_ray_cluster_fit_the_schemas_of_kubernetes(tmp_path):
    _, groups = ray_pods()
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, **each["template"]}
        for each in groups
    ]
    rest = [each for each in documents_of(KUBERAY) if each["kind"] != "RayCluster"]
    fits_kubernetes(pods + rest, tmp_path)


def test_the_ray_cluster_offers_one_follower_per_worker(tmp_path):
    spec, _ = ray_pods()
    (config,) = [each for each in documents_of(KUBERAY) if each["kind"] == "ConfigMap"]
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
    lock = (ROOT / "requirements" / "follower.txt").read_text()
    assert f"\nray=={spec['rayVersion']} " in lock


@pytest.mark.parametrize("name", ["rendered", "listed"])
def test_the_chart_does_not_own_the_crd(helm, name):
    if name == "rendered":
        assert "CustomResourceDefinition" not in template(values=PROFILES["everything"]).stdout
    else:
        assert not (CHART / "crds").exists()
