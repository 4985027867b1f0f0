"""`PeerClient` and `PeerServer` over real sockets."""

import asyncio
import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from rufus_serve.channel.keys import GroupKeys
from rufus_serve.channel.peer import PeerClient, PeerServer
from rufus_serve.channel.sockets import ConnectionMonitor, connect, new_socket
from rufus_serve.errors import EndpointError
from rufus_serve.protocol.codec import encode
from rufus_serve.protocol.messages import Ack, Drain, RestartFollower, Status, StatusRequest

KEYS = GroupKeys.from_token("the token of the group")
OTHER_KEYS = GroupKeys.from_token("the token of another group")
LONG_S = 20.0
SHORT_S = 0.3


@pytest.fixture(autouse=True)
def no_thread_is_left_over() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert not set(threading.enumerate()) - before


@pytest.fixture(params=["tcp", "ipc"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "tcp://127.0.0.1:0" if request.param == "tcp" else f"ipc://{tmp_path}/link"


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, LONG_S))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


class Client:
    """A `PeerClient` that keeps what it was told."""

    def __init__(self, endpoint: str, *, keys: GroupKeys = KEYS) -> None:
        self.messages: list[Any] = []
        self.connections: list[bool] = []
        self.peer = PeerClient(
            endpoint,
            keys=keys,
            on_message=self.messages.append,
            on_connection=self.connections.append,
        )


def test_messages_go_both_ways_in_order(address: str) -> None:
    async def scenario() -> None:
        server = PeerServer(address, keys=KEYS)
        client = Client(server.endpoint)
        for number in range(50):
            client.peer.send(Drain(grace_s=float(number)))
        received = [await server.receive() for _ in range(50)]
        assert [message.grace_s for _, message in received] == [float(n) for n in range(50)]
        peer = received[0][0]
        for number in range(50):
            assert await server.send(peer, Ack(error=str(number)))
        await until(lambda: len(client.messages) == 50)
        assert [message.error for message in client.messages] == [str(n) for n in range(50)]
        assert client.connections == [True]
        client.peer.close()
        server.close()

    run(scenario())


def test_clients_are_told_apart_and_an_unknown_one_is_reported(address: str) -> None:
    async def scenario() -> None:
        server = PeerServer(address, keys=KEYS)
        clients = [Client(server.endpoint) for _ in range(3)]
        for number, client in enumerate(clients):
            client.peer.send(Drain(grace_s=float(number)))
        names = {}
        for _ in clients:
            peer, message = await server.receive()
            names[message.grace_s] = peer
        assert len(set(names.values())) == 3
        assert await server.send(names[1.0], Ack(error="for 1"))
        assert not await server.send(b"nobody", Ack())
        await until(lambda: bool(clients[1].messages))
        assert clients[0].messages == clients[2].messages == []
        for client in clients:
            client.peer.close()
        server.close()

    run(scenario())


def test_another_token_is_reported_by_name_and_never_accepted(address: str) -> None:
    async def scenario() -> None:
        server = PeerServer(address, keys=KEYS)
        stranger = Client(server.endpoint, keys=OTHER_KEYS)
        stranger.peer.send(StatusRequest())
        await until(lambda: stranger.peer.refused is not None)
        assert "another token" in str(stranger.peer.refused)
        assert server.endpoint in str(stranger.peer.refused)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(server.receive(), SHORT_S)
        assert stranger.connections == []
        stranger.peer.close(flush_s=0.1)
        server.close()

    run(scenario())


@pytest.mark.parametrize("secret", ["own", "none"])
def test_knowing_the_servers_key_alone_lets_nobody_in(secret: str) -> None:
    async def scenario() -> None:
        server = PeerServer("tcp://127.0.0.1:0", keys=KEYS)
        context: zmq.Context[Any] = zmq.Context()
        socket = new_socket(context, zmq.DEALER)
        monitor = ConnectionMonitor(socket)
        events: list[Any] = []
        if secret == "own":
            public, own = zmq.curve_keypair()
            connect(
                socket,
                server.endpoint,
                GroupKeys(
                    server_public=KEYS.server_public,
                    server_secret=b"",
                    client_public=public,
                    client_secret=own,
                ),
            )
        else:
            socket.connect(server.endpoint)
        socket.send_multipart(encode(StatusRequest()))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(server.receive(), SHORT_S)
        deadline = time.monotonic() + LONG_S
        while not events and time.monotonic() < deadline:
            monitor.drain(events.append)
            await asyncio.sleep(0.01)
        assert [event.name for event in events[:1]] == ["REFUSED"]
        monitor.close()
        socket.close()
        context.term()
        server.close()

    run(scenario())


def test_groups_of_different_tokens_share_a_process() -> None:
    async def scenario() -> None:
        servers = [PeerServer("tcp://127.0.0.1:0", keys=keys) for keys in (KEYS, OTHER_KEYS)]
        clients = [
            Client(server.endpoint, keys=keys)
            for server, keys in zip(servers, (KEYS, OTHER_KEYS), strict=True)
        ]
        for number, (server, client) in enumerate(zip(servers, clients, strict=True)):
            client.peer.send(Drain(grace_s=float(number)))
            assert (await server.receive())[1] == Drain(grace_s=float(number))
        for server, client in zip(servers, clients, strict=True):
            client.peer.close()
            server.close()

    run(scenario())


def test_malformed_messages_are_dropped_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        server = PeerServer("tcp://127.0.0.1:0", keys=KEYS)
        context: zmq.Context[Any] = zmq.Context()
        socket = new_socket(context, zmq.DEALER)
        connect(socket, server.endpoint, KEYS)
        for frames in ([b""], [b"nonsense"], [b"a"] * 40, encode(StatusRequest())):
            socket.send_multipart(frames)
        assert (await server.receive())[1] == StatusRequest()
        assert sum("malformed" in record.message for record in caplog.records) == 3
        socket.close()
        context.term()
        server.close()

    run(scenario())


def test_a_client_finds_a_server_that_comes_back_under_the_same_name() -> None:
    async def scenario() -> None:
        server = PeerServer("tcp://127.0.0.1:0", keys=KEYS)
        client = Client(server.endpoint)
        client.peer.send(StatusRequest())
        name, _ = await server.receive()
        server.close()
        await until(lambda: client.connections == [True, False])
        client.peer.send(Drain(grace_s=1.0))
        again = PeerServer(server.endpoint, keys=KEYS)
        assert await again.receive() == (name, Drain(grace_s=1.0))
        await until(lambda: client.connections == [True, False, True])
        assert await again.send(name, Ack())
        await until(lambda: client.messages == [Ack()])
        client.peer.close()
        again.close()

    run(scenario())


def test_a_client_may_come_before_its_server(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = Client(f"ipc://{tmp_path}/late")
        client.peer.send(StatusRequest())
        await asyncio.sleep(0.1)
        server = PeerServer(f"ipc://{tmp_path}/late", keys=KEYS)
        assert (await server.receive())[1] == StatusRequest()
        client.peer.close()
        server.close()

    run(scenario())


def test_closing_flushes_what_is_queued_and_does_not_wait_for_nobody(address: str) -> None:
    async def scenario() -> None:
        server = PeerServer(address, keys=KEYS)
        client = Client(server.endpoint)
        for number in range(100):
            client.peer.send(Drain(grace_s=float(number)))
        await asyncio.to_thread(client.peer.close, flush_s=LONG_S)
        for number in range(100):
            assert (await server.receive())[1] == Drain(grace_s=float(number))
        server.close()
        lonely = Client(server.endpoint)
        lonely.peer.send(StatusRequest())
        started = time.monotonic()
        lonely.peer.close(flush_s=0.2)
        lonely.peer.close()
        lonely.peer.send(StatusRequest())
        assert time.monotonic() - started < 2.0

    run(scenario())


def test_a_callback_may_send_close_or_fail(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        server = PeerServer("tcp://127.0.0.1:0", keys=KEYS)

        def on_message(message: Any) -> None:
            match message:
                case Drain():
                    raise RuntimeError("not now")
                case StatusRequest():
                    client.send(Ack(error="here"))
                case _:
                    client.close()

        client = PeerClient(server.endpoint, keys=KEYS, on_message=on_message)
        client.send(StatusRequest())
        name, _ = await server.receive()
        for message in (Drain(grace_s=0.0), StatusRequest()):
            await server.send(name, message)
        assert (await server.receive())[1] == Ack(error="here")
        assert "not now" in caplog.text
        await server.send(name, Ack())
        await until(lambda: "peer" not in {thread.name for thread in threading.enumerate()})
        server.close()

    run(scenario())


def test_a_taken_port_is_named_with_advice() -> None:
    server = PeerServer("tcp://127.0.0.1:0", keys=KEYS)
    with pytest.raises(EndpointError, match=rf"{server.endpoint}.*another process uses it"):
        PeerServer(server.endpoint, keys=KEYS)
    server.close()
    server.close()


@pytest.mark.parametrize(
    ("endpoint", "advice"),
    [
        ("tcp://192.0.2.1:0", "no interface of this host"),
        ("127.0.0.1:5555", "malformed"),
        ("ipc:///nowhere/at/all/link", "choose|check|folder"),
        (f"ipc:///tmp/{'x' * 200}", "too long"),
    ],
)
def test_an_impossible_address_is_named_with_advice(endpoint: str, advice: str) -> None:
    with pytest.raises(EndpointError, match=advice) as refused:
        PeerServer(endpoint, keys=KEYS)
    assert endpoint in str(refused.value)


def test_a_malformed_endpoint_is_refused_by_the_client() -> None:
    with pytest.raises(EndpointError, match="cannot connect to nonsense"):
        PeerClient("nonsense", keys=KEYS, on_message=print)


def test_large_status_messages_pass() -> None:
    async def scenario() -> None:
        server = PeerServer("tcp://127.0.0.1:0", keys=KEYS)
        client = Client(server.endpoint)
        status = Status(state="ready", epoch=1, healthy=True, ready=True, detail="x" * (1 << 19))
        client.peer.send(status)
        assert (await server.receive())[1] == status
        client.peer.close()
        server.close()

    run(scenario())


def _beat(endpoint: str) -> None:
    client = PeerClient(endpoint, keys=KEYS, on_message=print)
    client.send(RestartFollower(node_rank=os.getpid()))
    client.close(flush_s=LONG_S)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_makes_its_own_connection() -> None:
    async def scenario() -> None:
        server = PeerServer("tcp://127.0.0.1:0", keys=KEYS)
        ours = Client(server.endpoint)
        ours.peer.send(StatusRequest())
        await server.receive()
        child = multiprocessing.get_context("fork").Process(target=_beat, args=(server.endpoint,))
        child.start()
        assert (await server.receive())[1] == RestartFollower(node_rank=child.pid)
        await asyncio.to_thread(child.join)
        assert child.exitcode == 0
        ours.peer.send(Ack())
        assert (await server.receive())[1] == Ack()
        ours.peer.close()
        server.close()

    run(scenario())


def _hold(endpoint: str, seconds: int) -> None:
    PeerClient(endpoint, keys=KEYS, on_message=print).send(StatusRequest())
    time.sleep(0.3)
    ctypes.PyDLL(None).sleep(seconds)


def test_a_client_is_cut_off_when_its_process_stops_but_not_when_its_interpreter_is_held() -> None:
    async def scenario() -> None:
        server = PeerServer("tcp://127.0.0.1:0", keys=KEYS, ping_s=0.2, silence_s=0.6)
        child = multiprocessing.get_context("spawn").Process(
            target=_hold, args=(server.endpoint, 30)
        )
        child.start()
        peer, _ = await server.receive()
        for _ in range(20):
            assert await server.send(peer, Ack())
            await asyncio.sleep(0.1)
        os.kill(child.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        while await server.send(peer, Ack()):
            await asyncio.sleep(0.02)
        assert 0.2 < time.monotonic() - stopped < 2.0
        child.kill()
        await asyncio.to_thread(child.join)
        server.close()

    run(scenario())
