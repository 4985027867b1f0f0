"""What hosts send when they join tells neither a listener nor an impostor the token."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rufus_serve.cluster.ray_token import ray_token
from rufus_serve.errors import HandshakeRefused
from tests.multihost import hosts
from tests.multihost.hosts import Host, Network
from tests.multihost.spread import RAY_PORT, offer, on_hosts, write_token

pytestmark = [
    pytest.mark.timeout(180),
    hosts.NEEDED,
]
_ETH_P_ALL = 3
_TLS_HANDSHAKE = b"\x16\x03"


@contextlib.contextmanager
def overheard(host: Host) -> Iterator[list[bytes]]:
    """All frames that a host sends and gets meanwhile."""
    frames: list[bytes] = []
    with host.entered():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    tap.bind(("eth0", _ETH_P_ALL))
    tap.settimeout(0.1)
    over = threading.Event()

    def listen() -> None:
        while not over.is_set():
            with contextlib.suppress(TimeoutError):
                frames.append(tap.recv(1 << 16))

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield frames
    finally:
        over.set()
        thread.join()
        tap.close()


def test_no_packet_of_a_joining_group_holds_a_token(tmp_path: Path) -> None:
    flags = ("--max-model-len=256", "--buckets.prefill=64")
    with (
        Network(2) as network,
        overheard(network.hosts[1]) as frames,
        on_hosts(network, tmp_path, *flags) as server,
    ):
        assert server.ask()
        group_token = server.token.read_text()
    to_ray = [frame for frame in frames if _TLS_HANDSHAKE in frame and _ports(frame) & {RAY_PORT}]
    assert to_ray, "nothing was overheard"
    # HTTP/2, which Ray's calls travel by, begins so where it is in clear.
    for plain in (group_token, ray_token(group_token), "authorization", "PRI * HTTP/2.0"):
        assert not [frame for frame in frames if plain.encode() in frame]


def test_an_impostor_at_the_leaders_address_is_not_told_the_token(tmp_path: Path) -> None:
    token, log = write_token(tmp_path / "token"), tmp_path / "log"
    received: list[bytes] = []

    def imitate(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            received.append(connection.recv(1 << 16))
            # The beginning of HTTP/2, which Ray's calls travel by.
            connection.sendall(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00")
            connection.settimeout(5)
            with contextlib.suppress(OSError):
                while more := connection.recv(1 << 16):
                    received.append(more)

    with Network(2) as network:
        first, second = network.hosts
        with first.entered():
            listener = socket.create_server((first.address, RAY_PORT))
        thread = threading.Thread(target=imitate, args=(listener,))
        thread.start()
        offered = offer(second, leader=f"{first.address}:{RAY_PORT}", token=token, log=log)
        assert offered.wait(60) == HandshakeRefused.exit_code, log.read_text()
        thread.join()
        listener.close()
    said = b"".join(received)
    assert said.startswith(_TLS_HANDSHAKE)
    assert ray_token(token.read_text()).encode() not in said
    assert "does not prove that it knows this host's token" in log.read_text().splitlines()[-1]


def _ports(frame: bytes) -> set[int]:
    """Source and destination of a TCP packet over IPv4; empty for others."""
    if frame[12:14] != b"\x08\x00" or frame[23] != 6:
        return set()
    start = 14 + 4 * (frame[14] & 15)
    return {int.from_bytes(frame[at : at + 2], "big") for at in (start, start + 2)}
