"""`rufus-serve doctor` as a user runs it: on this host, and over two Ray nodes side by side."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from rufus_serve.cluster.addresses import choose_address
from tests.e2e.server import DEMO_MODEL, ROOT, free_port

PROGRAM = str(Path(sys.executable).parent / "rufus-serve")


def doctor(*words: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [PROGRAM, "doctor", *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environ,
        timeout=120,
        check=False,
    )


def findings(*words: str, code: int) -> dict[str, list[dict[str, Any]]]:
    """What it finds, by check."""
    done = doctor(*words, "--json")
    assert done.returncode == code, (done.stdout, done.stderr)
    value = json.loads(done.stdout)
    assert value["exit_code"] == code
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in value["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    return found


def levels(found: list[dict[str, Any]]) -> list[str]:
    return [finding["level"] for finding in found]


def test_a_host_that_can_serve_the_demo_model_is_told_so() -> None:
    port = f"--port={free_port()}"
    done = doctor("--config=configs/cpu-demo.yaml", port)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "2 followers share 9 query and 3 KV heads" in done.stdout
    assert "skipped (runtime is cpu): neuron devices" in done.stdout
    found = findings("--config=configs/cpu-demo.yaml", port, code=0)
    assert levels(found["model"]) == ["ok"]
    assert levels(found["leader"]) == ["ok"]


def test_a_host_without_devices_gets_errors_with_fixes_and_no_traceback() -> None:
    done = doctor(str(DEMO_MODEL), "--runtime=neuron", "--neuron.cores-per-node=3")
    assert done.returncode == 7, (done.stdout, done.stderr)
    assert "there is no /dev/neuron* on this host" in done.stdout
    assert "aws-neuronx-dkms" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "no model: give its folder as MODEL"),
        (("--nodez=2",), 2, "unknown flag --nodez; did you mean --nodes?"),
        (("/absent",), 3, "/absent: no such folder"),
        ((str(DEMO_MODEL), "--cluster.python=/nowhere"), 2, "cluster.python '/nowhere'"),
        ((str(DEMO_MODEL), "--cluster.token-file=/nowhere"), 2, "token file /nowhere"),
        ((str(DEMO_MODEL), "--runtime=tpu"), 2, "runtime"),
    ],
)
def test_bad_input_ends_as_serve_does(words: tuple[str, ...], code: int, said: str) -> None:
    done = doctor(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr.splitlines()[-1]


def test_a_damaged_model_is_an_error_of_the_model(tiny_model: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_model, tmp_path / "broken"))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    (found,) = findings(str(broken), f"--port={free_port()}", code=3)["model"]
    assert f"{weights}: damaged: 5000 bytes" in found["what"]


def test_one_damaged_file_of_real_artifacts_is_named(tiny_model: Path, tmp_path: Path) -> None:
    compiled = subprocess.run(
        [PROGRAM, "compile", str(tiny_model), "--nodes=2", f"--out={tmp_path}"],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    folder = Path(compiled.stdout.strip())
    where = (f"--artifacts.location={folder}", f"--port={free_port()}")
    words = (str(tiny_model), "--nodes=2", *where)
    assert levels(findings(*words, code=0)["artifacts"]) == ["ok"]
    shard = folder / "shards/node-001.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    (found,) = findings(*words, code=12)["artifacts"]
    assert f"{shard}: expected sha256" in found["what"]
    assert "rufus-serve compile" in found["fix"]
    assert levels(findings(*words, "--quick", code=0)["artifacts"]) == ["ok"]


def test_a_port_in_use_is_an_address_error_and_strict_counts_warnings() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (found,) = findings(str(DEMO_MODEL), f"--port={port}", code=4)["ports"]
    assert "Address already in use" in found["what"]
    many = ("--limits.max-waiting=999999999", f"--port={free_port()}")
    assert doctor(str(DEMO_MODEL), *many).returncode == 0
    done = doctor(str(DEMO_MODEL), *many, "--strict")
    assert done.returncode == 14, done.stdout


def test_the_followers_environment_is_the_one_examined(tmp_path: Path) -> None:
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    done = doctor(str(DEMO_MODEL), f"--cluster.python={python}")
    assert done.returncode == 7
    assert "No module named" in done.stderr
    assert str(python) in done.stderr


class Group:
    """A token, free ports and flags for two nodes on this host's own address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = choose_address()
        self.ray_port, self.port = free_port(), free_port()
        self.token = folder / "token"
        self.token.touch(mode=0o600)
        self.token.write_text(secrets.token_hex(32))
        self.flags = (
            str(DEMO_MODEL), "--nodes=2", "--all-nodes", f"--port={self.port}",
            f"--cluster.ray-port={self.ray_port}", f"--cluster.token-file={self.token}",
            f"--cluster.interface={self.address}", f"--cluster.state-dir={folder}",
            f"--cluster.control-port={free_port()}", "--timeouts.join-s=45",
        )  # fmt: skip

    @contextmanager
    def follower(self) -> Iterator["subprocess.Popen[bytes]"]:
        """`rufus-serve follower` for the length of the block."""
        with (self.folder / "follower.log").open("wb") as log:
            process = subprocess.Popen(
                [
                    PROGRAM, "follower", f"--leader={self.address}:{self.ray_port}",
                    f"--token-file={self.token}",
                ],
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def test_two_nodes_are_examined_and_the_follower_waits_on(tmp_path: Path) -> None:
    group = Group(tmp_path)
    with group.follower() as follower:
        found = findings(*group.flags, code=0)
        assert len({finding["node"] for finding in found["model"]}) == 2
        (reached,) = found["reachability"]
        assert reached["level"] == "ok"
        # A free port both ways, two ports of either raylet, and the control port.
        assert reached["what"].startswith("7 connections")
        assert levels(found["clock"]) == ["ok"]
        assert levels(found["versions agree"]) == ["ok"]
        log = tmp_path / "follower.log"
        deadline = time.monotonic() + 30
        while log.read_text().rstrip().splitlines()[-1].find("waiting for the leader") < 0:
            assert follower.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
    running = [" ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])]
    assert not [command for command in running if f"{group.address}:{group.ray_port}" in command]


def test_a_node_that_does_not_come_is_told_with_the_line_to_run(tmp_path: Path) -> None:
    group = Group(tmp_path)
    found = findings(*group.flags, "--timeouts.join-s=2", code=5)
    (absent,) = found["nodes"]
    assert absent["what"].startswith("1 of 2 nodes came within 2 s")
    assert f"rufus-serve follower --leader {group.address}:{group.ray_port}" in absent["fix"]
    assert levels(found["model"]) == ["ok"]


def test_followers_of_one_host_need_no_cluster() -> None:
    found = findings(str(DEMO_MODEL), "--nodes=2", "--all-nodes", f"--port={free_port()}", code=0)
    (note,) = found["nodes"]
    assert (note["level"], "all 2 followers run on this host" in note["what"]) == ("note", True)
