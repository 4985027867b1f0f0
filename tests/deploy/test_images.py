"""`images.sh`: what it runs, with stand-ins for AWS and Docker, and the values that it writes."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.chart import PROFILES, ROOT, one, render

SCRIPT = ROOT / "deploy" / "eks" / "images.sh"
SDK_DIGEST = "sha256:" + 64 * "5"
DIGEST = "sha256:" + 64 * "d"
REGISTRY = "123456789012.dkr.ecr.us-west-2.amazonaws.com"
TRN1 = PROFILES["trn1.32xlarge"]


class Publisher:
    """The script, in a folder of stand-ins that write down how they were called."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "values-images.yaml"
        self.calls = folder / "calls"
        self.calls.touch()
        self.stand_in(
            "aws", f'case "$*" in *get-caller*) echo {REGISTRY[:12]};; *describe*) exit 1;; esac'
        )
        self.stand_in(
            "docker", f'[ "$1" != image ] || echo "${{@: -1}}" | sed "s/:[^:]*$/@{DIGEST}/"'
        )
        self.stand_in("trivy", "")

    def stand_in(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {self.calls}\n{body}\n')
        path.chmod(0o755)

    def run(self, *words: str, digest: str = SDK_DIGEST) -> "subprocess.CompletedProcess[str]":
        environ = {"PATH": f"{self.folder}:{os.environ['PATH']}", "OUT": str(self.out)}
        return subprocess.run(
            [str(SCRIPT), "us-west-2", "0.1.0", *words],
            capture_output=True, text=True, check=False, env={**environ, "SDK_DIGEST": digest},
        )  # fmt: skip

    def called(self, start: str) -> list[str]:
        return [call for call in self.calls.read_text().splitlines() if call.startswith(start)]


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path)


def test_the_values_that_it_writes_render_with_images_by_digest(helm, publisher):
    done = publisher.run()
    assert done.returncode == 0, done.stderr
    values = publisher.out
    merged = {**yaml.safe_load(TRN1.read_text()), **yaml.safe_load(values.read_text())}
    both = values.with_name("both.yaml")
    both.write_text(yaml.safe_dump(merged))
    documents = render("router.enabled=true", values=both)
    pods = one(documents, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]["leaderTemplate"]
    images = [each["image"] for each in pods["spec"]["containers"]]
    assert images == [
        f"{REGISTRY}/rufus-serve-leader@{DIGEST}",
        f"{REGISTRY}/rufus-serve-follower-neuron@{DIGEST}",
    ]
    (router,) = one(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert router["image"] == f"{REGISTRY}/rufus-serve-router@{DIGEST}"


def test_every_image_of_a_deployment_is_built_scanned_and_pushed_once(publisher):
    assert publisher.run().returncode == 0
    names = ["leader", "follower-neuron", "router"]
    for verb in ("docker push", "trivy image"):
        assert [call.split("/rufus-serve-")[-1] for call in publisher.called(verb)] == [
            f"{name}:0.1.0" for name in names
        ]
    builds = publisher.called("docker build")
    assert len(builds) == 3
    assert [f"SDK_DIGEST={SDK_DIGEST}" in call for call in builds] == [False, True, False]
    assert all("IMMUTABLE" in call for call in publisher.called("aws ecr create-repository"))


def test_an_image_that_the_scan_refuses_is_not_pushed(publisher):
    publisher.stand_in("trivy", '[ "$1" = fs ]')
    assert publisher.run().returncode != 0
    assert publisher.called("docker push") == []
    assert not publisher.out.exists()


def test_a_dry_run_runs_nothing(publisher):
    done = publisher.run("--dry-run")
    assert done.returncode == 0, done.stderr
    assert publisher.calls.read_text() == ""
    assert not publisher.out.exists()
    assert "docker push" in done.stderr
    assert "would write" in done.stdout


@pytest.mark.parametrize("digest", ["", "latest", "sha256:abc"])
def test_an_sdk_image_that_is_not_named_by_its_digest_is_refused(publisher, digest):
    done = publisher.run(digest=digest)
    assert done.returncode == 2
    assert f"SDK_DIGEST is '{digest}'" in done.stderr
    assert publisher.calls.read_text() == ""
