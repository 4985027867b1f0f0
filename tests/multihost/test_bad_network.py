"""A link that takes its time and loses packets: slower, and nothing else."""

import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.losses import status_of, strike
from tests.e2e.models import assert_greedy, prompt, tiny_checkpoint
from tests.multihost import hosts
from tests.multihost.hosts import Network
from tests.multihost.spread import SpreadServer, on_hosts, wait_until

pytestmark = [
    pytest.mark.timeout(240),
    hosts.NEEDED,
]

DELAY_MS, LOSS = 5.0, 0.01
ECHO_PORT = 7007
_ECHO = f"""
import socket, sys
echo = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
echo.bind((sys.argv[1], {ECHO_PORT}))
print("listening", flush=True)
while True:
    data, peer = echo.recvfrom(1)
    echo.sendto(data, peer)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "llama", "llama")


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SpreadServer]:
    folder = tmp_path_factory.mktemp("bad")
    flags = ("--max-model-len=256", "--dtype=float32", "--buckets.prefill=64")
    with Network(2) as network:
        network.hosts[1].impair(delay_ms=DELAY_MS, loss=LOSS)
        with on_hosts(network, folder, *flags, model=model) as server:
            yield server


def test_packets_are_late_and_lost(server: SpreadServer, tmp_path: Path) -> None:
    """Or the tests below would prove nothing."""
    second = server.network.hosts[1]
    echo = second.start(sys.executable, "-c", _ECHO, second.address, log=tmp_path / "log")
    wait_until((tmp_path / "log").read_text, lambda: "no echo")
    try:
        took_s = [round_trip_s(second.address) for _ in range(300)]
    finally:
        echo.kill()
        echo.wait()
    came = sorted(each for each in took_s if each)
    assert 0.7 * len(took_s) < len(came) < len(took_s)
    assert 2 * DELAY_MS < 1000 * came[len(came) // 2] < 4 * DELAY_MS


def round_trip_s(address: str) -> float:
    """Of a datagram; 0 if it or its answer is lost."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.settimeout(0.1)
        began = time.monotonic()
        probe.sendto(b"?", (address, ECHO_PORT))
        try:
            probe.recv(1)
        except TimeoutError:
            return 0.0
        return time.monotonic() - began


def test_answers_are_the_reference_and_nobody_is_taken_for_lost(
    server: SpreadServer, model: Path
) -> None:
    for start in (0, 500, 1000):
        tokens = prompt(70, start=start)
        assert_greedy(model, tokens, server.greedy(tokens, 24))
    status = status_of(server)
    assert (status.restarts, status.epoch) == (0, 1)


def test_a_killed_follower_is_replaced_all_the_same(server: SpreadServer, model: Path) -> None:
    strike(server, 1).wait_recovered()
    tokens = prompt(70, start=1500)
    assert_greedy(model, tokens, server.greedy(tokens, 8))
