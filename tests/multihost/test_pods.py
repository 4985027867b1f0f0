"""The chart's own containers: their commands, users, mounts and read-only roots, on hosts.

What kubelet and LeaderWorkerSet would do is done here: a pod is a set of containers in one network,
and a lost worker pod is another set, in another network, under another address.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.chart import PROFILES, one, render
from tests.deploy.conftest import need
from tests.e2e.server import DEMO_MODEL, Server
from tests.e2e.streams import Streams, chat, completion
from tests.multihost import hosts
from tests.multihost.hosts import PROGRAM, Host, Network
from tests.multihost.spread import wait_until

pytestmark = [
    pytest.mark.timeout(700),
    hosts.NEEDED,
]

POD = str(Path(__file__).parent / "pod.sh")
USER = 10001
SETS = (
    "config.max_model_len=512", "config.dtype=float32", "config.cpu.threads=1",
    "config.timeouts.heartbeat_lost_s=10", "config.timeouts.step_floor_s=10",
    "config.timeouts.leader_start_s=400", "config.timeouts.join_s=200",
    "apiKeys.enabled=false", "groupToken.existingSecret=token",
)  # fmt: skip
ASKS = [
    chat("What is the capital of France?", max_tokens=64),
    completion("Once upon a time", seed=7, temperature=1.0, max_tokens=64, ignore_eos=True),
]


class Pod:
    """One pod's containers on a host of their own, started as the manifest says."""

    def __init__(self, spec: dict[str, Any], host: Host, folder: Path, leader: Host) -> None:
        self.host, self.folder = host, folder
        self.spec = spec
        names = {"$(POD_IP)": host.address, "$(LWS_LEADER_ADDRESS)": leader.address}
        self.containers = {each["name"]: self._start(each, names) for each in spec["containers"]}

    def _start(self, container: dict[str, Any], names: dict[str, str]) -> "subprocess.Popen[bytes]":
        assert container["securityContext"]["readOnlyRootFilesystem"]
        mounts = self.folder / container["name"]
        shutil.copytree(self.folder / "mounts", mounts, symlinks=True, dirs_exist_ok=True)
        give_away(mounts)
        words = [*container["command"], *container.get("args", [])]
        for name, value in names.items():
            words = [word.replace(name, value) for word in words]
        words[0] = words[0].replace("rufus-serve", PROGRAM)
        return self.host.start(
            POD, str(mounts), sys.base_prefix, *words, log=self.log_path(container["name"])
        )

    def log_path(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    @property
    def log(self) -> str:
        return "".join(self.log_path(name).read_text() for name in self.containers)

    def lose(self) -> None:
        """The node is gone: nothing is told to anyone."""
        self.host.set_link("down")
        for process in self.containers.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)

    def end(self) -> None:
        for process in self.containers.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)


def give_away(folder: Path) -> None:
    """As fsGroup and defaultMode do it."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, USER, USER, follow_symlinks=False)
    (folder / "etc" / "token" / "token").chmod(0o440)


class ServerInPods(Server):
    """What the e2e helpers ask of a server, for one that pods run."""

    def __init__(self, port: int, pods: list[Pod], model: Path) -> None:
        self.port, self.pods, self.model = port, pods, model
        self.process = pods[0].containers["leader"]

    @property
    def log(self) -> str:
        return "\n".join(pod.log for pod in self.pods)

    @property
    def name(self) -> str:
        return "demo"


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    need("helm4")
    return render(*SETS, values=PROFILES["cpu"])


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """Where user 10001 may go, unlike pytest's own folders."""
    folder = Path(f"/var/tmp/rufus-pods-{secrets.token_hex(4)}")
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def mounts_of(manifests: list[dict[str, Any]], folder: Path, token: str) -> None:
    (text,) = [
        each["data"]["config.yaml"]
        for each in manifests
        if each["kind"] == "ConfigMap" and "config.yaml" in each.get("data", {})
    ]
    for name in ("etc/config", "etc/token", "opt", "tmp", "shm"):
        (folder / "mounts" / name).mkdir(parents=True)
    (folder / "mounts/etc/config/config.yaml").write_text(text)
    (folder / "mounts/etc/token/token").write_text(token)
    shutil.copytree(DEMO_MODEL, folder / "mounts/opt/demo-model", copy_function=os.link)


@pytest.fixture(scope="module")
def group(manifests: list[dict[str, Any]], place: Path) -> Iterator[tuple[ServerInPods, Network]]:
    """A leader's pod and a worker's, and one more host without any."""
    template = one(manifests, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    assert template["restartPolicy"] == "None"
    port = yaml.safe_load(one(manifests, "ConfigMap")["data"]["config.yaml"])["port"]
    token = secrets.token_hex(32)
    with Network(3) as network:
        pods: list[Pod] = []
        try:
            for number, name in enumerate(("leaderTemplate", "workerTemplate")):
                mounts_of(manifests, place / str(number), token)
                pods.append(
                    Pod(template[name]["spec"], network.hosts[number], place / str(number),
                        network.hosts[0])
                )  # fmt: skip
            server = ServerInPods(port, pods, DEMO_MODEL)
            with network.hosts[0].entered():
                server.wait_ready(deadline_s=400)
                mounts_of(manifests, place / "2", token)
                yield server, network
        finally:
            for pod in pods:
                pod.end()


def test_containers_run_as_their_user_and_can_write_nowhere_else(
    group: tuple[ServerInPods, Network],
) -> None:
    server, _ = group
    seen = set()
    for pod in server.pods:
        for process in pod.containers.values():
            for status in children(process.pid):
                fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
                if fields["Name"].strip() in ("unshare", "bash"):
                    continue
                seen.add(fields["Name"].strip())
                assert fields["Uid"].split() == [str(USER)] * 4, fields["Name"]
                assert int(fields["CapBnd"], 16) == 0
    assert "raylet" in seen


def children(pid: int) -> list[str]:
    """/proc status of all processes below."""
    found = []
    listed = subprocess.run(
        ["pgrep", "--parent", str(pid)], capture_output=True, text=True, check=False
    )
    for child in listed.stdout.split():
        path = Path("/proc") / child / "status"
        if path.exists():
            found += [path.read_text(), *children(int(child))]
    return found


def test_streams_go_on_when_a_worker_pod_is_replaced_under_another_address(
    group: tuple[ServerInPods, Network], place: Path
) -> None:
    server, network = group
    assert "Paris" in server.ask()
    undisturbed = Streams(server.port, server.name, ASKS).finish()
    streams = Streams(server.port, server.name, ASKS)
    streams.wait_until_each_began()
    lost = server.pods[1]
    lost.lose()
    server.pods.append(Pod(lost.spec, network.hosts[2], place / "2", network.hosts[0]))
    for found, expected in zip(streams.finish(), undisturbed, strict=True):
        found.assert_same(expected)
    wait_until(lambda: server.get("/ready")[0] == 200, lambda: server.log, deadline_s=120)
    assert "Paris" in server.ask()
    assert server.process.poll() is None


def test_a_drained_leader_ends_well_and_followers_after_it(
    group: tuple[ServerInPods, Network],
) -> None:
    server, _ = group
    leader = server.process
    (program,) = subprocess.run(
        ["pgrep", "--full", "--pgroup", str(leader.pid), "serve --config"],
        capture_output=True, text=True, check=True,
    ).stdout.split()[-1:]  # fmt: skip
    os.kill(int(program), signal.SIGTERM)
    deadline = time.monotonic() + 60
    while leader.poll() is None:
        assert time.monotonic() < deadline, server.log
        time.sleep(0.2)
    assert leader.returncode == 0, server.log
