"""Hostile peers, the honest ones beside them, and a listener that costs the least a server may."""

import asyncio
import contextlib
import multiprocessing
import os
import random
import re
import socket
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import psutil

Address = tuple[str, int]
PAUSE_S = 2.0
"""Between an honest connection's requests: a thousand of them leave the server time to spare."""
SETTLE_S = 2.0
"""Until all attackers are at work."""
REQUEST = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
HOSTILE_HOST = "127.0.0.2"
"""Where attackers come from: all of 127/8 is this machine."""
LEAST_ANSWER = b"HTTP/1.1 431 Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
MOST_READ = 64_000


class Honest:
    """Connections that ask again and again, in this process; counts only while told to."""

    def __init__(self, address: Address, connections: int) -> None:
        self.taken: list[float] | None = None
        """Seconds of requests that began since it was set."""
        self._tasks = [asyncio.create_task(self._ask(address)) for _ in range(connections)]

    async def _ask(self, address: Address) -> None:
        await asyncio.sleep(random.random() * PAUSE_S)
        reader, writer = await asyncio.open_connection(*address)
        while True:
            taken, began = self.taken, time.monotonic()
            writer.write(REQUEST)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert head.startswith(b"HTTP/1.1 200"), head
            assert length
            await reader.readexactly(int(length[1]))
            if taken is not None:
                taken.append(time.monotonic() - began)
            await asyncio.sleep(PAUSE_S)

    async def measured(self, seconds: float) -> list[float]:
        """Seconds of the requests that begin in so many seconds.

        Raises:
            Exception: one of the connections was not served.
        """
        found: list[float] = []
        self.taken = found
        done, _ = await asyncio.wait(self._tasks, timeout=seconds, return_when="FIRST_EXCEPTION")
        self.taken = None
        for task in done:
            task.result()
        return found

    def stop(self) -> None:
        """Ask no more."""
        for task in self._tasks:
            task.cancel()


@dataclass
class Turn:
    """What the honest ones and the server saw while the attackers were at one place."""

    p50_ms: float
    p99_ms: float
    """Of the honest requests."""
    cores: float
    """That the server's API process took."""


async def take_turns(
    server: Address,
    api: psutil.Process,
    elsewhere: Address,
    *,
    honest: int,
    hostile: int,
    seconds: float,
    rounds: int,
) -> dict[str, list[Turn]]:
    """Turns by where the attackers are: nowhere, elsewhere, or at the server.

    Attackers take processors whatever they attack, so that a fair comparison has them at work in
    either case. The honest connections stay open throughout.
    """
    targets = {"nowhere": None, "elsewhere": elsewhere, "at it": server}
    found: dict[str, list[Turn]] = {name: [] for name in targets}
    clients = Honest(server, honest)
    await clients.measured(2 * PAUSE_S)
    for number in range(rounds):
        for name in sorted(targets, reverse=number % 2 == 1):
            target = targets[name]
            with apart(attack, target, hostile) if target else contextlib.nullcontext():
                await clients.measured(SETTLE_S)
                found[name].append(await _turn(clients, api, seconds / rounds / len(targets)))
    clients.stop()
    return found


async def _turn(clients: Honest, api: psutil.Process, seconds: float) -> Turn:
    before = sum(api.cpu_times()[:2])
    taken = await clients.measured(seconds)
    cores = (sum(api.cpu_times()[:2]) - before) / seconds
    percents = statistics.quantiles(taken, n=100)
    return Turn(percents[49] * 1000, percents[98] * 1000, cores)


@contextlib.contextmanager
def apart(work: Callable[..., None], *args: Any) -> Iterator[None]:
    """`work` in a process of its own, killed at the end."""
    process = multiprocessing.Process(target=work, args=args, daemon=True)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


@contextlib.contextmanager
def least_server() -> Iterator[Address]:
    """A listener that accepts, reads what a head may be, refuses, and hangs up: nothing else."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as sock, apart(_serve_least, sock):
        yield sock.getsockname()


def _serve_least(sock: socket.socket) -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(_Least, sock=sock, backlog=2048)
        await server.serve_forever()

    asyncio.run(serve())


class _Least(asyncio.Protocol):
    """Refuses whoever has sent one whole head, or as much as a head may be."""

    def connection_made(self, transport: Any) -> None:
        self._transport, self._read = transport, 0

    def data_received(self, data: bytes) -> None:
        self._read += len(data)
        if self._read > MOST_READ or REQUEST in data:
            self._transport.write(LEAST_ANSWER)
            self._transport.close()


def attack(address: Address, hostile: int) -> None:
    """All kinds of hostile peers at once, until this process is killed."""
    os.nice(19)  # attackers bring processors of their own
    kinds: list[Callable[..., Coroutine[Any, Any, None]]] = [
        idle, drip_head, drip_body, unread, huge,
    ]  # fmt: skip

    async def together() -> None:
        await asyncio.gather(*(kinds[number % len(kinds)](address) for number in range(hostile)))

    asyncio.run(together())


async def idle(address: Address) -> None:
    """Connect and say nothing."""
    await speak(address, [b""], pause_s=60)


async def drip_head(address: Address) -> None:
    """Send headers without end, slowly."""
    await speak(address, [b"GET / HTTP/1.1\r\n", *[b"X: a\r\n"] * 10_000], pause_s=0.2)


async def drip_body(address: Address) -> None:
    """Send a body byte by byte."""
    fields = b"Host: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n"
    head = b"POST /v1/completions HTTP/1.1\r\n" + fields + b"\r\n"
    await speak(address, [head, *[b" "] * 10_000], pause_s=0.2)


async def unread(address: Address) -> None:
    """Ask again and again, and read nothing."""
    await speak(address, [REQUEST * 50] * 10_000, pause_s=0.2)


async def huge(address: Address) -> None:
    """Send headers of megabytes."""
    await speak(address, [b"GET / HTTP/1.1\r\nX: " + b"a" * 4_000_000], pause_s=0.2)


async def speak(address: Address, parts: list[bytes], *, pause_s: float) -> None:
    """Send `parts`, and begin again whenever the server hangs up."""
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(*address, local_addr=(HOSTILE_HOST, 0))
            for part in parts:
                writer.write(part)
                await asyncio.wait_for(writer.drain(), 60)
                await asyncio.sleep(pause_s)
            writer.close()
        await asyncio.sleep(pause_s)
