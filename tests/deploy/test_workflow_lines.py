"""Every `run:` of the workflows is executed, with stand-ins for what leaves this machine."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.chart import ROOT, TOOLS
from tests.deploy.conftest import absent, need
from tests.deploy.test_workflows import WORKFLOWS, steps

VERSION = yaml.safe_load((ROOT / "deploy/helm/rufus-serve/Chart.yaml").read_text())["version"]
DIGEST = "sha256:" + 64 * "a"
ELSEWHERE = {"cosign", "sudo", "pip", "make"}
"""Commands that publish, change the machine, or are this very test."""


def lines(file: str, job: str) -> list[str]:
    """The `run:` texts of a job."""
    path = ROOT / ".github" / "workflows" / f"{file}.yml"
    return [step["run"] for name, step in steps(path) if name == job and "run" in step]


class Runner:
    """A checkout in which commands run as they would on a runner."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.bin = folder / "checkout", folder / "bin"
        self.calls = folder / "calls"
        self.bin.mkdir()
        kept = shutil.ignore_patterns(
            ".git", ".venv*", ".models", ".tools", "__pycache__", "build", "*.log"
        )
        shutil.copytree(ROOT, self.checkout, ignore=kept)
        for name in ELSEWHERE:
            self.stand_in(name, "")
        # It reads a password there; a pipe that nobody reads would end its writer.
        self.stand_in("cosign", "[ $1 != login ] || cat > /dev/null")

    def stand_in(self, name: str, body: str) -> None:
        path = self.bin / name
        path.write_text(f'#!/bin/bash\necho "{name} $*" >> {self.calls}\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def run(self, text: str, **environ: str) -> "subprocess.CompletedProcess[str]":
        """As GitHub runs it: bash, stopping at the first error."""
        path = f"{self.bin}:{TOOLS / 'venv' / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", text],
            cwd=self.checkout, env={**os.environ, "PATH": path, **environ},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines()


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    return Runner(tmp_path)


def test_none_is_left_out():
    """A new job or command needs a test here."""
    known = {("chart", "chart"): 2, ("ci", "ci"): 1, ("release", "version"): 1}
    known |= {("ci", "install"): 1, ("ci", "multihost"): 1, ("ci", "load"): 1}
    known |= {("ci", "windows"): 1}
    known |= {
        ("images", "build"): 1,
        ("release", "images"): 2,
        ("release", "package"): 1,
        ("release", "chart"): 1,
    }
    found = {
        (file.stem, job): len(lines(file.stem, job))
        for file in WORKFLOWS
        for job in yaml.safe_load(file.read_text())["jobs"]
    }
    assert found == known


def test_ci_checks_and_tests(runner):
    (text,) = lines("ci", "ci")
    done = runner.run(text)
    assert done.returncode == 0, done.stderr
    assert runner.called() == ["make check", "make test", "make test-deploy"]


def test_long_suites_are_run(runner):
    (text,) = lines("ci", "load")
    assert runner.run(text).returncode == 0
    assert runner.called() == ["make test-load"]


def test_windows_are_opened(runner):
    (text,) = lines("ci", "windows")
    assert runner.run(text).returncode == 0
    assert runner.called() == ["make test-ui test-dashboard test-clients test-evals site"]


def test_the_install_scripts_are_those_of_the_images(runner):
    scripts = ("install-leader.sh", "install-follower.sh")
    for name in scripts:
        runner.stand_in(name, "")
        shutil.copy(runner.bin / name, runner.checkout / "docker" / name)
    (text,) = lines("ci", "install")
    done = runner.run(text, RUNNER_TEMP="/r")
    assert done.returncode == 0, done.stderr
    assert runner.called() == ["install-leader.sh /r/leader", "install-follower.sh /r/follower"]


def test_hosts_are_made_by_root_with_the_runners_python(runner):
    (text,) = lines("ci", "multihost")
    done = runner.run(text)
    assert done.returncode == 0, done.stderr
    (call,) = runner.called()
    assert call.startswith("sudo --preserve-env=PIP_EXTRA_INDEX_URL env PATH=")
    assert call.endswith(" make test-multihost")


def test_the_chart_is_checked(runner):
    for text in lines("chart", "chart"):
        done = runner.run(text)
        assert done.returncode == 0, done.stderr
    assert [call.split()[0] for call in runner.called()] == ["pip", "make"]


@pytest.mark.parametrize(("tag", "code"), [(f"v{VERSION}", 0), ("v99.0.0", 1)])
def test_a_tag_that_disagrees_ends_the_release(runner, tmp_path, tag, code):
    (text,) = lines("release", "version")
    output = tmp_path / "output"
    done = runner.run(text, TAG=tag, GITHUB_OUTPUT=str(output))
    assert done.returncode == code, done.stderr
    assert output.exists() == (code == 0)
    if code == 0:
        assert output.read_text() == f"version={VERSION}\n"


@pytest.mark.parametrize(("tagged", "code"), [(DIGEST, 0), ("sha256:" + 64 * "b", 1)])
def test_images_are_signed_and_attested_by_the_digest_that_the_tag_then_names(runner, tagged, code):
    name = "ghcr.io/o/rufus-serve-leader"
    runner.stand_in("docker", f'[ "$3" != inspect ] || echo {tagged}')
    room, publish = lines("release", "images")
    assert runner.run(room).returncode == 0
    done = runner.run(publish, NAME=name, DIGEST=DIGEST, VERSION=VERSION)
    assert done.returncode == code, done.stderr
    free, sign, attest, tag, _ = runner.called()
    assert free.startswith("sudo rm -rf /usr/share/dotnet")
    assert sign == f"cosign sign --yes {name}@{DIGEST}"
    assert attest.endswith(f"--predicate sbom.spdx.json {name}@{DIGEST}")
    assert tag.endswith(f"--tag {name}:{VERSION} {name}@{DIGEST}")


@pytest.mark.parametrize(("size", "code"), [(999_999_999, 0), (1_000_000_001, 1)])
def test_an_image_is_run_as_the_chart_runs_it_and_has_a_largest_size(runner, size, code):
    runner.stand_in("docker", f'[ "$1" != image ] || echo {size}')
    (text,) = lines("images", "build")
    assert runner.run(text, MAX_GB="1").returncode == code
    assert "--read-only" in runner.called()[0]
    assert "--user 10001:10001" in runner.called()[0]


def test_the_package_builds_and_passes_twine(runner):
    if not (TOOLS / "venv" / "bin" / "twine").exists():
        absent("twine is not here: run deploy/helm/get-tools.sh")
    (text,) = lines("release", "package")
    done = runner.run(text)
    assert done.returncode == 0, done.stdout + done.stderr
    built = {path.name for path in (runner.checkout / "dist").iterdir()}
    assert built == {f"rufus_serve-{VERSION}.tar.gz"}


def test_the_chart_is_packaged_pushed_and_signed_by_its_digest(runner):
    helm = need("helm3")
    runner.stand_in(
        "helm",
        f'case $1 in lint|package) exec {helm} "$@";; push) echo "Digest: {DIGEST}";; '
        "*) cat > /dev/null;; esac",
    )
    (text,) = lines("release", "chart")
    done = runner.run(text, VERSION=VERSION, REGISTRY="ghcr.io/o", ACTOR="a", TOKEN="t")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (runner.checkout / f"rufus-serve-{VERSION}.tgz").exists()
    assert runner.called()[-1] == f"cosign sign --yes ghcr.io/o/charts/rufus-serve@{DIGEST}"
    assert "t" not in [word for call in runner.called() for word in call.split()]
