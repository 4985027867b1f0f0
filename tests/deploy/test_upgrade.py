"""What `helm upgrade` sends is taken by the API server: fields that it never changes stay equal."""

import pytest

from tests.deploy.chart import PROFILES, ROOT, render

BASE = [PROFILES["trn1.32xlarge"], ROOT / "deploy" / "eks" / "values-70b.yaml"]
OPEN = ("networkPolicy.enabled=false", "router.enabled=true", "metrics.monitor=pod")
CHANGES = [
    "image.leader.tag=9.9.9",
    "image.follower.tag=9.9.9",
    "router.image.tag=9.9.9",
    "leader.resources.limits.memory=64Gi",
    "follower.resources.limits.memory=400Gi",
    "compile.resources.limits.memory=400Gi",
    "placement.tolerations[0].key=other",
    "compile.tolerations[0].key=other",
    "storage.tolerations[0].key=other",
    "scratch=1Ti",
    "sharedMemory=32Gi",
    "storage.cache.size=500Gi",
    "podLabels.team=search",
    "commonLabels.team=search",
    "commonAnnotations.team=search",
    "podAnnotations.team=search",
    "config.log_level=DEBUG",
    "config.max_num_seqs=1",
    "config.max_model_len=4096",
    "config.timeouts.shutdown_grace_s=60",
    "replicas=3",
    "group.maxSurge=1",
    "group.partition=1",
    "service.type=NodePort",
    "router.replicas=4",
    "serviceAccount.annotations.a=b",
    "config.port=8100",
]


def fixed(document):
    """The part of a manifest that Kubernetes refuses to change in place."""
    kind, spec = document["kind"], document.get("spec", {})
    if kind == "Job":
        return {name: spec.get(name) for name in ("template", "selector", "completions")}
    if kind == "Deployment":
        return spec["selector"]
    if kind == "PersistentVolumeClaim":
        return {name: value for name, value in spec.items() if name != "resources"}
    if kind == "PersistentVolume":
        return spec["csi"]
    if kind == "RoleBinding":
        return document["roleRef"]
    if kind == "Secret":
        return document.get("type")
    return None


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_of_values_touches_a_field_that_cannot_change(helm, change):
    before, after = (
        {
            (each["kind"], each["metadata"]["name"]): fixed(each)
            for each in render(*sets, values=BASE)
        }
        for sets in (OPEN, (*OPEN, change))
    )
    assert {key for key in before.keys() & after.keys() if before[key] != after[key]} == set()


def test_groups_are_replaced_one_by_one_or_some_kept_as_canaries(helm):
    for sets, expected in (((), (1, 0, 0)), (("group.maxSurge=1", "group.partition=2"), (1, 1, 2))):
        (lws,) = [each for each in render(*sets, values=BASE) if each["kind"] == "LeaderWorkerSet"]
        rolling = lws["spec"]["rolloutStrategy"]["rollingUpdateConfiguration"]
        names = ("maxUnavailable", "maxSurge", "partition")
        assert tuple(rolling[name] for name in names) == expected
