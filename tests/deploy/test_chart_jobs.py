"""Jobs of the chart: what renames them, what they wait for, and their commands at work."""

import os
import subprocess
from pathlib import Path

import pytest

from rufus_serve.artifacts.inputs import ARTIFACT_SETTINGS
from rufus_serve.config.settings import Setting, all_settings
from tests.deploy.chart import PROFILES, ROOT, job, one, render
from tests.deploy.conftest import need_root

BASE = [PROFILES["trn1.32xlarge"], ROOT / "deploy" / "eks" / "values-70b.yaml"]
OWNED_OR_FIXED = {
    "allow_anonymous",
    # Refused or meaningless beside the rest of the profile.
    "model", "runtime", "nodes", "neuron.mode", "neuron.cores_per_node", "neuron.kv_layout",
    "artifacts.location", "artifacts.required", "recovery.standby_nodes", "max_model_len",
    "recovery.deadline_s", "timeouts.load_s", "timeouts.warm_up_s", "limits.request_timeout_s",
}  # fmt: skip


def compile_job(*sets: str):
    return job(render(*sets, values=BASE), "compile")


@pytest.mark.parametrize(
    "change",
    [
        "image.follower.tag=9.9.9",
        "image.leader.tag=9.9.9",
        "compile.resources.limits.memory=500Gi",
        "compile.nodeSelector.rufus-serve/nodes=other",
        "compile.tolerations[0].key=other",
        "podSecurityContext.runAsUser=10002",
        "scratch=300Gi",
        "commonLabels.team=search",
        "config.max_num_seqs=1",
    ],
)
def test_another_template_is_another_job(helm, change):
    """Kubernetes refuses to change a Job's template in place."""
    before, after = compile_job(), compile_job(change)
    assert before["spec"]["template"] != after["spec"]["template"]
    assert before["metadata"]["name"] != after["metadata"]["name"]


@pytest.mark.parametrize("component", ["compile", "load", "prepare"])
def test_a_new_release_of_the_chart_alone_runs_no_job_again(helm, component, tmp_path):
    newer = tmp_path / "rufus-serve"
    subprocess.run(["cp", "-r", str(ROOT / "deploy/helm/rufus-serve"), str(newer)], check=True)
    meta = newer / "Chart.yaml"
    meta.write_text(meta.read_text().replace("version: 0.1.0", "version: 0.1.9"))
    before = job(render(values=BASE), component)
    after = job(render(values=BASE, chart=newer), component)
    assert before["metadata"]["name"] == after["metadata"]["name"]
    assert before["spec"]["template"] == after["spec"]["template"]


def plain_settings() -> list[Setting]:
    return [
        setting
        for setting in all_settings().values()
        if setting.key not in OWNED_OR_FIXED
        and setting.key not in ARTIFACT_SETTINGS["neuron"]
        and (setting.is_bool or setting.choices or isinstance(setting.default, int | float))
    ]


def test_settings_that_change_no_artifact_leave_job_and_mark_alone(helm, tmp_path):
    before = compile_job()
    changes = []
    for setting in plain_settings():
        if "port" in setting.key or setting.key.startswith("cluster."):
            continue
        other = (
            not setting.default
            if setting.is_bool
            else next(each for each in setting.choices if each != setting.default)
            if setting.choices
            else 1
            if setting.key.endswith("ratio")
            else int(setting.default) + 2
        )
        changes.append(f"config.{setting.key}={str(other).lower() if setting.is_bool else other}")
    assert len(changes) > 20
    after = compile_job(*changes)
    assert before["metadata"]["name"] == after["metadata"]["name"]
    assert before["spec"]["template"] == after["spec"]["template"]


@pytest.mark.parametrize("key", ["config.max_num_seqs=1", "config.dtype=float32"])
def test_groups_wait_for_the_artifacts_of_their_own_settings(helm, key):
    documents = render(key, values=BASE)
    assert mark_awaited(documents) == mark_written(documents)
    assert mark_awaited(documents) != mark_awaited(render(values=BASE))


def mark_written(documents) -> str:
    (container,) = job(documents, "compile")["spec"]["template"]["spec"]["containers"]
    return container["args"][1]


def awaits(spec) -> dict[str, list[str]]:
    return {each["name"]: each["args"] for each in spec.get("initContainers", [])}


def mark_awaited(documents) -> str:
    group = one(documents, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    return awaits(group["leaderTemplate"]["spec"])["await-artifacts"][1]


def test_writers_come_after_the_folders_are_theirs(helm):
    documents = render(values=BASE)
    for component, folder in (("load", "/models"), ("compile", "/artifacts")):
        spec = job(documents, component)["spec"]["template"]["spec"]
        assert awaits(spec)["await-storage"][:2] == ["-w", folder]
    prepared = job(documents, "prepare")["spec"]["template"]["spec"]
    assert prepared["containers"][0]["args"] == ["/models", "/artifacts"]
    assert prepared["containers"][0]["securityContext"]["capabilities"] == {
        "drop": ["ALL"],
        "add": ["CHOWN"],
    }


def test_one_claim_is_one_volume_of_a_pod(helm):
    """Kubelet never mounts one claim as two volumes of one pod: it would wait for ever."""
    for document in render(values=BASE):
        for spec in pod_specs(document):
            claims = [each.get("persistentVolumeClaim") for each in spec["volumes"]]
            used = [each["claimName"] for each in claims if each]
            assert len(set(used)) == len(used), document["metadata"]["name"]


def pod_specs(document):
    if document["kind"] == "LeaderWorkerSet":
        group = document["spec"]["leaderWorkerTemplate"]
        return [group["leaderTemplate"]["spec"], group["workerTemplate"]["spec"]]
    return [document["spec"]["template"]["spec"]] if document["kind"] == "Job" else []


@pytest.mark.parametrize(
    ("sets", "prepares"),
    [
        ([], True),
        (["storage.model.prepare=never", "storage.artifacts.prepare=never"], False),
        (["storage.model.url=", "compile.enabled=false"], False),
    ],
)
def test_folders_are_prepared_where_someone_writes_to_them(helm, sets, prepares):
    assert (job(render(*sets, values=BASE), "prepare") is not None) == prepares


def test_an_access_point_needs_no_preparation(helm):
    efs = ["kind=efs", "fileSystemId=fs-0a", "url=s3://b/m"]
    sets = [f"storage.model.{each}" for each in efs]
    sets += ["config.model=/models/m"]
    assert job(render(*sets), "prepare") is not None
    documents = render(*sets, "storage.model.accessPointId=fsap-0b")
    assert job(documents, "prepare") is None
    volume = one(documents, "PersistentVolume")["spec"]["csi"]
    assert volume["volumeHandle"] == "fs-0a::fsap-0b"


def test_a_wait_ends_with_a_word(helm, tmp_path):
    spec = job(render(values=BASE), "compile")["spec"]["template"]["spec"]
    (wait,) = [each for each in spec["initContainers"] if each["name"] == "await-model"]
    done = run([*wait["command"], "-e", str(tmp_path / "absent"), "0"])
    assert done.returncode == 1
    assert "see the jobs of this release" in done.stderr
    (tmp_path / "there").touch()
    assert run([*wait["command"], "-e", str(tmp_path / "there"), "0"]).returncode == 0


def test_a_prepared_folder_can_be_written_to_by_the_pods_user(helm, tmp_path):
    """The job's own command, with the one right that the chart leaves to it."""
    need_root()
    folder = tmp_path / "fresh"
    folder.mkdir(mode=0o755)
    for parent in (tmp_path, *tmp_path.parents[:3]):
        parent.chmod(parent.stat().st_mode | 0o011)
    (prepare,) = job(render(values=BASE), "prepare")["spec"]["template"]["spec"]["containers"]
    wait = awaits_command("-w", folder)
    assert as_pod(wait).returncode == 1
    for _ in range(2):
        done = run(["setpriv", "--bounding-set=-all,+chown", *prepare["command"], str(folder)])
        assert done.returncode == 0, done.stderr
    assert as_pod(wait).returncode == 0
    assert as_pod(["touch", str(folder / "written")]).returncode == 0


def awaits_command(test: str, folder: Path) -> list[str]:
    spec = job(render(values=BASE), "load")["spec"]["template"]["spec"]
    (wait,) = spec["initContainers"]
    return [*wait["command"], test, str(folder), "0"]


def as_pod(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return run(
        ["setpriv", "--reuid=10001", "--regid=10001", "--clear-groups", "--bounding-set=-all",
         "--no-new-privs", *command],
    )  # fmt: skip


def run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)


def test_a_model_is_marked_only_once_all_of_it_was_copied(helm, tmp_path):
    (copy,) = job(render(values=BASE), "load")["spec"]["template"]["spec"]["containers"]
    source, target, mark = copy["args"]
    assert source.startswith("s3://")
    assert target == "/models/Llama-3.1-70B-Instruct"
    aws = tmp_path / "aws"
    path = f"{tmp_path}:{os.environ['PATH']}"
    for code in (1, 0):
        aws.write_text(f"#!/bin/sh\nexit {code}\n")
        aws.chmod(0o755)
        done = subprocess.run(
            [*copy["command"], source, target, str(tmp_path / "mark")],
            env={"PATH": path}, check=False,
        )  # fmt: skip
        assert (done.returncode, (tmp_path / "mark").exists()) == (code, code == 0)
    group = one(render(values=BASE), "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    assert awaits(group["workerTemplate"]["spec"])["await-model"][1] == mark


def test_a_group_outwaits_the_job_that_it_waits_for(helm):
    documents = render(values=BASE)
    group = one(documents, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    seconds = int(awaits(group["leaderTemplate"]["spec"])["await-artifacts"][2])
    assert seconds > job(documents, "compile")["spec"]["activeDeadlineSeconds"]
    loading = job(documents, "load")["spec"]["activeDeadlineSeconds"]
    assert job(documents, "compile")["spec"]["activeDeadlineSeconds"] > loading


def test_the_compiler_writes_where_the_root_is_read_only(helm):
    (container,) = job(render(values=BASE), "compile")["spec"]["template"]["spec"]["containers"]
    environment = {each["name"]: each.get("value", "") for each in container["env"]}
    mounted = [each["mountPath"] for each in container["volumeMounts"] if "readOnly" not in each]
    for name in ("HOME", "NEURON_COMPILE_CACHE_URL"):
        assert any(environment[name].startswith(each) for each in mounted), name
