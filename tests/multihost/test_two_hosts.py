"""Leader and follower 0 on one host, follower 1 on another that joins by itself."""

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.e2e.server import DEMO_MODEL
from tests.multihost import hosts
from tests.multihost.hosts import PROGRAM, Host, Network

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(bool(hosts.missing()), reason=hosts.missing()),
]

PORT = 8000
ASK = {"model": DEMO_MODEL.name, "prompt": "The capital of France is", "temperature": 0}


def write_token(path: Path) -> Path:
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return path


class Group:
    """A server over two hosts."""

    def __init__(self, network: Network, folder: Path) -> None:
        self.first, self.second = network.hosts
        self.log, self.follower_log = folder / "serve.log", folder / "follower.log"
        token = write_token(folder / "token")
        # The follower comes first and has to wait.
        self.follower = self.second.start(
            PROGRAM, "follower", f"--leader={self.first.address}:6379", f"--token-file={token}",
            log=self.follower_log,
        )  # fmt: skip
        self.server = self.first.start(
            PROGRAM, "serve", str(DEMO_MODEL), "--nodes=2", "--max-model-len=512",
            "--dtype=float32", f"--port={PORT}", f"--cluster.token-file={token}",
            "--cluster.interface=eth0", f"--cluster.state-dir={folder}",
            "--timeouts.heartbeat-lost-s=3", "--timeouts.step-floor-s=3",
            log=self.log,
        )  # fmt: skip

    def wait_ready(self, *, deadline_s: float = 150.0) -> None:
        deadline = time.monotonic() + deadline_s
        while not self.first.fetch(f"http://127.0.0.1:{PORT}/ready").endswith("200"):
            assert self.server.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.25)

    def ask(self, max_tokens: int) -> str:
        body = json.dumps(ASK | {"max_tokens": max_tokens, "ignore_eos": True})
        answer, _, code = self.first.fetch(
            f"http://127.0.0.1:{PORT}/v1/completions", body
        ).rpartition("\n")
        assert code == "200", (code, answer, self.log.read_text())
        return str(json.loads(answer)["choices"][0]["text"])


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    with Network(2) as network:
        group = Group(network, tmp_path_factory.mktemp("group"))
        group.wait_ready()
        yield group


def processes_of(host: Host, module: str) -> list[psutil.Process]:
    """Processes of `python -m module` on `host`."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [])[1:3] == ["-m", module]
        and Path(f"/proc/{process.pid}/ns/net").stat().st_ino
        == Path(f"/run/netns/{host.name}").stat().st_ino
    ]


def test_the_shards_meet_over_the_network(group: Group) -> None:
    assert "Paris" in group.ask(8)
    assert len(processes_of(group.first, "rufus_serve.follower")) == 1
    assert len(processes_of(group.second, "rufus_serve.follower")) == 1


def test_a_follower_killed_on_the_other_host_costs_no_token(group: Group) -> None:
    expected = group.ask(64)
    (victim,) = processes_of(group.second, "rufus_serve.follower")
    victim.kill()
    assert group.ask(64) == expected
    (successor,) = processes_of(group.second, "rufus_serve.follower")
    assert successor.pid != victim.pid


def test_a_cut_link_pauses_requests_until_it_is_mended(group: Group) -> None:
    expected = group.ask(32)
    group.second.set_link("down")
    time.sleep(5.0)
    group.second.set_link("up")
    group.wait_ready()
    assert group.ask(32) == expected


def test_a_follower_with_another_token_is_refused_by_name(group: Group, tmp_path: Path) -> None:
    wrong, log = write_token(tmp_path / "token"), tmp_path / "log"
    stranger = group.second.start(
        PROGRAM, "follower", f"--leader={group.first.address}:6379", f"--token-file={wrong}",
        log=log,
    )  # fmt: skip
    assert stranger.wait(90) == 5
    assert "token" in log.read_text().splitlines()[-1]
    assert "Paris" in group.ask(8)
