"""Values that must be refused, each with the line that says why; and the generated schema."""

import subprocess
import sys

import pytest

from tests.deploy.chart import PROFILES, ROOT, template

TRN1 = PROFILES["trn1.32xlarge"]
HALVES = PROFILES["trn1.32xlarge-halves"]


def test_schema_and_defaults_are_those_of_the_settings():
    done = subprocess.run(
        [sys.executable, "deploy/helm/generate_schema.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "value",
    [
        "replica=2",
        "config.nods=2",
        "config.timeouts.shutdown_grace=2",
        "leader.resource.limits.cpu=1",
        "storage.model.kind=nfs",
        "storage.artifacts.url=s3://x",
        "config.nodes=0",
        "config.nodes=65",
        "config.port=0",
        "config.cluster.step_port=0",
        "config.runtime=gpu",
        "config.host=1.2.3.4",
        "config.cluster.token_file=/x",
        "group.restartPolicy=Default",
        "config.artifacts.cache=/x",
        "router.policy=power_of_two",
        "image.leader.digest=latest",
        "autoscaling.kind=vpa",
    ],
)
def test_unknown_and_impossible_values_are_refused_by_the_schema(major, value):
    done = template(value, major=major)
    assert done.returncode != 0
    assert "schema" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("values", "sets", "line"),
    [
        (
            TRN1,
            ["group.size=3"],
            "group.size 3 != (config.groups 1 x config.nodes 2 + config.recovery.standby_nodes 0) "
            "/ group.followersPerPod 1 = 2",
        ),
        (
            TRN1,
            ["group.tensorParallelSize=48"],
            "group.tensorParallelSize 48 != config.nodes 2 x config.neuron.cores_per_node 32 = 64",
        ),
        (None, ["group.tensorParallelSize=3"], "group.tensorParallelSize 3 != config.nodes 1"),
        (
            TRN1,
            ["config.neuron.cores_per_node=16"],
            "config.neuron.cores_per_node 16 x group.followersPerPod 1 = 16 != "
            "accelerator.neuronDevices 16 x accelerator.coresPerDevice 2 = 32",
        ),
        (
            HALVES,
            ["config.neuron.cores_per_node=32"],
            "config.neuron.cores_per_node 32 x group.followersPerPod 2 = 64 != "
            "accelerator.neuronDevices 16 x accelerator.coresPerDevice 2 = 32",
        ),
        (
            HALVES,
            ["config.nodes=3"],
            "(config.groups 1 x config.nodes 3 + config.recovery.standby_nodes 0) % "
            "group.followersPerPod 2 = 1, must be 0",
        ),
        (
            TRN1,
            ["accelerator.efaInterfaces=0"],
            "accelerator.efaInterfaces 0, but 2 nodes compute together",
        ),
        (
            TRN1,
            ["drain.terminationGracePeriodSeconds=135"],
            "drain.terminationGracePeriodSeconds 135 <= drain.preStopSeconds 15 + "
            "config.timeouts.shutdown_grace_s 120 = 135",
        ),
        (None, ["config.cluster.step_port=8000"], "config.cluster.step_port and config.port"),
        (
            None,
            ["config.port=6410"],
            "config.port 6410 is among config.cluster.rendezvous_port 6402 to 6417",
        ),
        (
            None,
            ["config.cluster.control_port=6500"],
            "config.cluster.control_port 6500 is among 6500 to 6819",
        ),
        (None, ["groupToken.generate=false"], "groupToken.existingSecret is empty"),
        (None, ["apiKeys.generate=false"], "apiKeys.existingSecret is empty"),
        (
            None,
            ["storage.model.kind=fsx"],
            "storage.model.kind is fsx, but storage.model.fileSystem",
        ),
        (
            None,
            ["storage.model.kind=existingClaim", "storage.model.claimName=m"],
            "config.model /opt/rufus-serve/demo-model is not below /models",
        ),
        (TRN1, ["config.artifacts.location=/data"], 'config.artifacts.location "/data" is not'),
        (TRN1, ["storage.artifacts.kind=none"], "nothing is mounted there"),
        (
            TRN1,
            [
                f"storage.{name}.{key}"
                for name in ("model", "artifacts")
                for key in ("kind=efs", "fileSystemId=fs-0a")
            ],
            "storage.model and storage.artifacts are both file system fs-0a",
        ),
        (None, ["storage.artifacts.kind=model"], "storage.model.kind image is no volume"),
        (
            None,
            ["storage.model.url=s3://bucket/m"],
            "storage.model.url s3://bucket/m, but storage.model.kind image is not copied to",
        ),
        (
            TRN1,
            ["storage.artifacts.kind=none", "config.artifacts.location=s3://bucket/a"],
            "the Neuron SDK's image has no s3fs",
        ),
        (
            TRN1,
            [
                "compile.enabled=true",
                "placement.nodeSelector.rufus-serve/nodes=compile",
                "compile.nodeSelector.node\\.kubernetes\\.io/instance-type=trn1.32xlarge",
            ],
            "groups that wait for artifacts would hold the nodes that the compile job waits for",
        ),
        (
            TRN1,
            [
                "config.recovery.standby_nodes=1",
                "group.restartPolicy=RecreateGroupAfterStart",
            ],
            "a stand-by would never take its place; set group.restartPolicy to None",
        ),
        (
            TRN1,
            ["config.recovery.deadline_s=600"],
            "config.recovery.deadline_s 600 < config.timeouts.load_s 1800 + warm_up_s 1800 = 3600",
        ),
        (
            None,
            ["ingress.enabled=true"],
            "ingress.enabled, but networkPolicy.loadBalancers is empty",
        ),
        (
            None,
            ["httpRoute.enabled=true"],
            "httpRoute.enabled, but networkPolicy.loadBalancers is empty",
        ),
        (
            None,
            ["httpRoute.enabled=true", "networkPolicy.enabled=false"],
            "httpRoute.parentRefs is empty",
        ),
        (None, ["metrics.monitor=pod"], "networkPolicy.scrapers is empty"),
        (None, ["router.enabled=true", "tls.existingSecret=c"], "vllm-router speaks to the groups"),
        (
            None,
            [
                "ingress.enabled=true",
                "networkPolicy.enabled=false",
                "ingress.scheme=internet-facing",
            ],
            "API keys would cross the internet in clear",
        ),
        (
            None,
            [
                "ingress.enabled=true",
                "networkPolicy.enabled=false",
                "config.limits.request_timeout_s=4000",
            ],
            "config.limits.request_timeout_s + 60 = 4060 > 4000",
        ),
        (None, ["compile.enabled=true"], "config.artifacts.location is empty"),
        (None, ["autoscaling.kind=keda"], "autoscaling.prometheusUrl is empty"),
        (
            None,
            ["autoscaling.kind=hpa", "autoscaling.minReplicas=5"],
            "autoscaling.minReplicas 5 > autoscaling.maxReplicas 2",
        ),
        (None, ["inferencePool.enabled=true"], "inferencePool.endpointPicker.name is empty"),
        (
            None,
            ["inferencePool.enabled=true", "inferencePool.endpointPicker.name=epp"],
            "the endpoint picker asks /metrics without a key and would get 401",
        ),
        (None, ["group.maxUnavailable=0"], "no group could ever be updated"),
    ],
)
def test_contradictions_are_refused_with_their_equation(helm, values, sets, line):
    done = template(*sets, values=values)
    assert done.returncode != 0
    assert line in " ".join(done.stderr.split()), done.stderr


@pytest.mark.parametrize(
    ("values", "sets"),
    [
        (TRN1, ["group.size=2", "group.tensorParallelSize=64"]),
        (TRN1, ["config.nodes=4", "group.size=4", "group.tensorParallelSize=128"]),
        (HALVES, ["config.nodes=4", "accelerator.efaInterfaces=8", "group.size=2"]),
        (TRN1, ["drain.terminationGracePeriodSeconds=136"]),
        (TRN1, ["config.recovery.standby_nodes=1", "group.size=3"]),
        (None, ["apiKeys.enabled=false", "apiKeys.generate=false"]),
        (None, ["config.artifacts.location=s3://bucket/a"]),
        (TRN1, ["compile.enabled=true"]),
    ],
)
def test_values_that_agree_are_taken(helm, values, sets):
    done = template(*sets, values=values)
    assert done.returncode == 0, done.stderr
