"""What people set on pods, and that it is added to the chart's own rather than put in its place."""

from pathlib import Path

import yaml

from tests.deploy.chart import OVERLAYS, PROFILES, SECRETS, one, render, template

EVERYTHING = PROFILES["everything"]
TRN1 = PROFILES["trn1.32xlarge"]
SPOT_NOTICE_S = 120
"""EC2's notice before a spot instance is taken back."""


def group_of(documents):
    return one(documents, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]


def test_a_lost_pod_comes_back_alone_where_the_group_recovers_by_itself(helm):
    for profile in PROFILES.values():
        assert group_of(render(values=profile))["restartPolicy"] == "None"
    sets = "group.restartPolicy=RecreateGroupAfterStart"
    assert group_of(render(sets, values=TRN1))["restartPolicy"] == "RecreateGroupAfterStart"


def test_affinity_is_added_to_the_charts_own(helm):
    term = "placement.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0]"
    documents = render(f"{term}.topologyKey=kubernetes.io/hostname", values=TRN1)
    pod = group_of(documents)["workerTemplate"]["spec"]["affinity"]["podAffinity"]
    keys = [each["topologyKey"] for each in pod["requiredDuringSchedulingIgnoredDuringExecution"]]
    assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    assert len(pod["preferredDuringSchedulingIgnoredDuringExecution"]) == 3


def test_labels_and_annotations_reach_everything(helm):
    for document in render(*SECRETS, values=EVERYTHING):
        if document["metadata"]["name"] == "demo-more":
            continue
        meta = document["metadata"]
        assert meta["labels"]["cost-centre"] == "search", document["kind"]
        assert meta["annotations"]["owner"] == "search@example.com", document["kind"]
    group = group_of(render(*SECRETS, values=EVERYTHING))
    for name in ("leaderTemplate", "workerTemplate"):
        assert group[name]["metadata"]["labels"]["cost-centre"] == "search"


def test_volumes_variables_and_containers_are_added(helm):
    documents = render(values=EVERYTHING)
    group = group_of(documents)
    for name in ("leaderTemplate", "workerTemplate"):
        spec = group[name]["spec"]
        assert "certificates" in [each["name"] for each in spec["volumes"]]
        assert spec["initContainers"][-1]["name"] == "first"
        assert spec["runtimeClassName"] == "neuron"
        for container in spec["containers"]:
            assert "/etc/certificates" in [m["mountPath"] for m in container["volumeMounts"]]
    leader = group["leaderTemplate"]["spec"]["containers"][0]
    assert leader["envFrom"] == [{"configMapRef": {"name": "more"}}]
    assert any(each["metadata"]["name"] == "demo-more" for each in documents)


def test_claims_take_the_place_of_device_plug_ins(helm):
    claim = "accelerator.resourceClaims[0]"
    documents = render(f"{claim}.name=node", f"{claim}.resourceClaimTemplateName=trn1", values=TRN1)
    spec = group_of(documents)["workerTemplate"]["spec"]
    assert spec["resourceClaims"] == [{"name": "node", "resourceClaimTemplateName": "trn1"}]
    resources = spec["containers"][0]["resources"]
    assert resources["claims"] == [{"name": "node"}]
    assert set(resources["limits"]) == {"memory"}


def test_ids_can_be_left_to_openshift(helm):
    nulls = [f"podSecurityContext.{name}=null" for name in ("runAsUser", "runAsGroup", "fsGroup")]
    spec = group_of(render(*nulls))["leaderTemplate"]["spec"]
    assert set(spec["securityContext"]) == {
        "runAsNonRoot", "seccompProfile", "fsGroupChangePolicy",
    }  # fmt: skip


def test_rendering_is_stable_with_secrets_that_exist(helm):
    """What Argo CD compares must not change by itself."""
    first, second = (template(*SECRETS, values=EVERYTHING).stdout for _ in range(2))
    assert first == second


def test_artifacts_are_copied_to_the_nodes_disk(helm):
    documents = render("storage.cache.size=300Gi", values=TRN1)
    maps = [each["data"] for each in documents if each["kind"] == "ConfigMap"]
    config = yaml.safe_load(maps[0]["config.yaml"])
    (follower,) = group_of(documents)["workerTemplate"]["spec"]["containers"]
    mounts = {each["name"]: each["mountPath"] for each in follower["volumeMounts"]}
    assert config["artifacts"]["cache"] == mounts["cache"] == "/cache"
    assert config["artifacts"]["location"] == "/artifacts"


def test_a_spot_node_is_left_within_its_notice(helm):
    documents = render(values=[TRN1, OVERLAYS["spot"]])
    for name in ("leaderTemplate", "workerTemplate"):
        spec = group_of(documents)[name]["spec"]
        assert spec["terminationGracePeriodSeconds"] <= SPOT_NOTICE_S - 10


def test_doctor_runs_where_a_follower_would(helm):
    documents = render(values=TRN1)
    doctor = one(documents, "Pod")
    assert doctor["metadata"]["annotations"]["helm.sh/hook"] == "test"
    worker = group_of(documents)["workerTemplate"]["spec"]
    assert doctor["spec"]["nodeSelector"] == worker["nodeSelector"]
    # Affinity to the pods of a group would leave it pending before there is one.
    assert "affinity" not in doctor["spec"]
    (container,) = doctor["spec"]["containers"]
    assert container["resources"] == worker["containers"][0]["resources"]
    assert container["command"][:2] == ["rufus-serve", "doctor"]


def test_a_group_that_has_no_model_of_its_own_mounts_a_bucket(helm):
    sets = [f"storage.model.{each}" for each in ("kind=mountpoint", "bucket=b", "region=us-west-2")]
    documents = render(*sets, "storage.model.prefix=llama", "config.model=/models/m")
    volume = one(documents, "PersistentVolume")["spec"]
    assert volume["csi"]["driver"] == "s3.csi.aws.com"
    assert "prefix llama/" in volume["mountOptions"]
    assert volume["accessModes"] == ["ReadOnlyMany"]


def notes_of(folder: Path, **values) -> str:
    """`helm template` leaves notes out, so they are rendered into one more object."""
    text = '{kind: Notes, metadata: {name: n}, text: {{ include "rufus-serve.notes" . | toJson }}}'
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump({"extraObjects": [text], **values}))
    documents = render(values=file)
    return " ".join(one(documents, "Notes")["text"].split())


def test_answers_that_outlast_the_drain_are_warned_of(helm, tmp_path):
    def warned(token_s: float, grace_s: int) -> bool:
        config = {"max_model_len": 8192, "timeouts": {"shutdown_grace_s": grace_s}}
        notes = notes_of(tmp_path, config=config, drain={"tokenSeconds": token_s})
        return "8192 tokens x 0.041 s = 336 s, a drain ends after" in notes

    assert warned(0.041, 120)
    assert not warned(0.041, 340)
    assert not warned(0, 120)
