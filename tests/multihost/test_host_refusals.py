"""Hosts that a leader cannot take are told why in one line, with an exit code of its own."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rufus_serve.cluster.ray_tls import GroupTls
from rufus_serve.cluster.ray_token import ray_environment
from rufus_serve.errors import ConfigError, HandshakeRefused
from tests.e2e.server import ROOT
from tests.multihost import hosts
from tests.multihost.hosts import Host, Network
from tests.multihost.spread import RAY_PORT, offer, write_token

pytestmark = [
    pytest.mark.timeout(120),
    hosts.NEEDED,
]

_HEAD = """
import sys, time
from rufus_serve.cluster.ray_greeting import announce
from rufus_serve.cluster.ray_head import RayHead
from rufus_serve.cluster.ray_session import RaySession
head = RayHead(
    address=sys.argv[1],
    port=int(sys.argv[2]),
    resources='{"rufus_follower": 1}',
    session=RaySession.in_new_folder(),
)
head.wait_ready()
announce(head.address)
print("announced", flush=True)
time.sleep(600)
"""
_OTHER_VERSION = """
import sys
import rufus_serve
rufus_serve.__version__ = "9.9.9"
import rufus_serve.protocol.messages
rufus_serve.protocol.messages.PROTOCOL_VERSION = 99
from rufus_serve.cli.main import main
sys.exit(main(sys.argv[1:]))
"""
_ENVIRONMENTS = "run tests/multihost/environments.sh"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network(2) as network:
        yield network


@pytest.fixture(scope="module")
def token(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a leader on the first host, as far as hosts that offer themselves see of it."""
    folder = tmp_path_factory.mktemp("head")
    token, log = write_token(folder / "token"), folder / "log"
    address = network.hosts[0].address
    tls = GroupTls(token.read_text(), folder / "tls", address=address)
    head = network.hosts[0].start(
        sys.executable, "-c", _HEAD, address, str(RAY_PORT),
        log=log, environ=ray_environment(token.read_text()) | tls.environ,
    )  # fmt: skip
    while "announced" not in log.read_text():
        assert head.poll() is None, log.read_text()
        time.sleep(0.1)
    yield token
    head.terminate()
    head.wait(20)


def refused(network: Network, token: Path, folder: Path, program: str = hosts.PROGRAM) -> str:
    """What the second host is told."""
    second, log = network.hosts[1], folder / "log"
    leader = f"{network.hosts[0].address}:{RAY_PORT}"
    offered = offer(second, leader=leader, token=token, log=log, program=program)
    assert offered.wait(60) == HandshakeRefused.exit_code, log.read_text()
    errors = [line for line in log.read_text().splitlines() if "10.213.77.1:6379" in line]
    assert len(errors) == 1, log.read_text()
    return errors[0]


def program(folder: Path, code: str) -> str:
    """A `rufus-serve` that runs `code`."""
    path = folder / "rufus-serve"
    path.write_text(f"#!{sys.executable}\n{code}")
    path.chmod(0o755)
    return str(path)


def environment(name: str) -> str:
    path = ROOT / name / "bin" / "rufus-serve"
    if not path.exists():
        pytest.skip(f"no {name}: {_ENVIRONMENTS}")
    return str(path)


def test_another_token(network: Network, token: Path, tmp_path: Path) -> None:
    line = refused(network, write_token(tmp_path / "token"), tmp_path)
    assert "refuses this host's token" in line


def test_another_protocol_is_refused_with_the_packages_versions(
    network: Network, token: Path, tmp_path: Path
) -> None:
    line = refused(network, token, tmp_path, program(tmp_path, _OTHER_VERSION))
    assert "speaks protocol 99 (rufus-serve 9.9.9), the leader" in line


def test_another_minor_of_python(network: Network, token: Path, tmp_path: Path) -> None:
    line = refused(network, token, tmp_path, environment(".venv-other-python"))
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"the leader {ours}; install the leader's here" in line
    assert "this host has Python 3." in line


def test_another_version_of_ray(network: Network, token: Path, tmp_path: Path) -> None:
    line = refused(network, token, tmp_path, environment(".venv-other-ray"))
    assert "this host has Ray 2." in line


def test_a_host_that_waits_ends_with_0_when_asked(network: Network, tmp_path: Path) -> None:
    token, log = write_token(tmp_path / "token"), tmp_path / "log"
    second: Host = network.hosts[1]
    offered = offer(second, leader="10.213.77.99:6379", token=token, log=log)
    with pytest.raises(subprocess.TimeoutExpired):
        offered.wait(5)
    offered.terminate()
    assert offered.wait(10) == 0
    assert "waiting for the leader at 10.213.77.99:6379" in log.read_text()


def test_a_token_that_all_may_read(network: Network, tmp_path: Path) -> None:
    token, log = write_token(tmp_path / "token"), tmp_path / "log"
    token.chmod(0o644)
    offered = offer(network.hosts[1], leader="10.213.77.1:6379", token=token, log=log)
    assert offered.wait(30) == ConfigError.exit_code
    assert "readable by everyone" in log.read_text()
