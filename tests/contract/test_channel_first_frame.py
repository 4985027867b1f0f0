"""What a peer takes from somebody who has no key."""

import asyncio
import socket
from typing import Any

import pytest

from rufus_serve.channel.base import HelloInfo
from rufus_serve.channel.keys import GroupKeys
from rufus_serve.channel.peer import PeerServer
from rufus_serve.channel.zeromq import ZmqFollowerChannel

KEYS = GroupKeys.from_token("the token of the group")
OTHER_KEYS = GroupKeys.from_token("the token of another group")
LONG_S = 20.0
SHORT_S = 0.3


@pytest.mark.parametrize("kind", ["control", "steps"])
def test_a_frame_beyond_the_bound_is_hung_up_on_before_the_handshake(kind: str) -> None:
    info = HelloInfo(config_hash="", sender_id="")

    async def scenario() -> None:
        if kind == "control":
            server: Any = PeerServer("tcp://127.0.0.1:0", keys=KEYS)
            endpoint = server.endpoint
        else:
            server = ZmqFollowerChannel(
                info, KEYS, node_rank=0, host="x", address="127.0.0.1", port=0
            )
            endpoint = server.endpoint.endpoint
        try:
            taken = await asyncio.to_thread(bytes_taken, endpoint.removeprefix("tcp://"))
            assert taken < 8 << 20
        finally:
            server.close()

    asyncio.run(asyncio.wait_for(scenario(), LONG_S))


def bytes_taken(address: str) -> int:
    """How much of one huge ZMTP frame a peer takes from who has no key."""
    host, _, port = address.rpartition(":")
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
    size = 256 << 20
    with socket.create_connection((host, int(port))) as sock:
        sock.settimeout(5)
        sock.sendall(greeting + b"\x06" + size.to_bytes(8, "big"))
        sent = 0
        try:
            while sent < size:
                sent += sock.send(bytes(1 << 16))
        except OSError:
            pass
    return sent
