"""What the HTTP server does with peers that send too much, too slowly, or do not read."""

import asyncio
import contextlib
import socket
import time
from typing import Any

import pytest
from raw_http import CHUNK, HEALTH, app, exchange, health_s, run, serving

from rufus_serve.leader.api.http_server import BoundedProtocol


@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\n" + b"X: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"X: a\r\n" * 5_000 + b"\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nX: " + b"a" * 3_000_000,
    ],
    ids=["one long", "many", "the path", "endless"],
)
def test_headers_beyond_the_bound_are_431_and_hung_up(head: bytes) -> None:
    async def scenario() -> None:
        async with serving() as (_, address):
            answer = await exchange(address, head)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
            await health_s(address)

    run(scenario)


def test_headers_within_the_bound_pass_on_every_request_of_a_connection() -> None:
    async def scenario() -> None:
        head = b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 12_000 + b"\r\n\r\n"
        async with serving() as (_, address):
            reader, writer = await asyncio.open_connection(*address)
            for _ in range(5):
                writer.write(head)
                assert b" 200 " in await reader.readuntil(b"{}")
            writer.close()

    run(scenario)


@pytest.mark.parametrize("sent", [b"", b"GET /he", b"\r\n\r\n", HEALTH[:-2]])
def test_a_connection_that_sends_no_whole_request_is_closed(sent: bytes) -> None:
    async def scenario() -> None:
        async with serving() as (_, address):
            answer = await asyncio.wait_for(exchange(address, sent), 10)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")

    run(scenario)


def test_a_connection_that_drips_its_headers_is_closed() -> None:
    async def scenario() -> None:
        async with serving() as (_, address):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"GET /health HTTP/1.1\r\n")
            began = time.monotonic()
            with contextlib.suppress(OSError):
                while not reader.at_eof() and time.monotonic() - began < 20:
                    writer.write(b"X: a\r\n")
                    await asyncio.sleep(0.1)
                    with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                        await asyncio.wait_for(reader.read(1000), 0.01)
            assert time.monotonic() - began < 10
            writer.close()

    run(scenario)


def test_idle_connections_make_room_for_new_ones() -> None:
    async def scenario() -> None:
        async with serving(max_connections=20, header_timeout_s=60) as (server, address):
            idle = [await asyncio.open_connection(*address) for _ in range(60)]
            for _ in range(5):
                assert await health_s(address) < 5
            assert len(server.server_state.connections) <= 21
            for _, writer in idle:
                writer.close()

    run(scenario)


def test_connections_that_were_answered_and_are_kept_make_room_too() -> None:
    async def scenario() -> None:
        async with serving(max_connections=10) as (_, address):
            kept = [await asyncio.open_connection(*address) for _ in range(10)]
            for reader, writer in kept:
                writer.write(HEALTH)
                assert b" 200 " in await reader.readuntil(b"{}")
            assert await health_s(address) < 5
            for _, writer in kept:
                writer.close()

    run(scenario)


def test_an_address_with_too_many_connections_loses_its_own() -> None:
    async def scenario() -> None:
        async with serving(max_connections_per_address=5, header_timeout_s=60) as (server, address):
            other = await asyncio.open_connection(*address, local_addr=("127.0.0.2", 0))
            streams = [await asyncio.open_connection(*address) for _ in range(5)]
            for reader, writer in streams:
                writer.write(HEALTH.replace(b"/health", b"/endless"))
                await reader.readuntil(b"\r\n\r\n")
            assert (await exchange(address, HEALTH)).startswith(b"HTTP/1.1 429 ")
            other[1].write(HEALTH)
            assert b" 200 " in await other[0].readuntil(b"{}")
            streams[0][1].transport.abort()
            while len(server.server_state.connections) > 5:
                await asyncio.sleep(0.01)
            assert await health_s(address) < 5
            for _, writer in (*streams, other):
                writer.transport.abort()

    run(scenario)


def test_who_asks_on_while_being_served_gets_two_answers_and_is_hung_up() -> None:
    async def scenario() -> None:
        async with serving() as (_, address):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(echo(b"{}")[0])
            await asyncio.sleep(0.1)
            writer.write(b"{}" + HEALTH * 1000)
            answers = await reader.read()
            assert answers.count(b" 200 ") == 2
            assert answers.count(b"connection: close") == 1
            writer.close()

    run(scenario)


def test_two_requests_at_once_are_both_served() -> None:
    async def scenario() -> None:
        async with serving() as (_, address):
            reader, writer = await asyncio.open_connection(*address)
            for _ in range(3):
                writer.write(HEALTH * 2)
                for _ in range(2):
                    assert b" 200 " in await reader.readuntil(b"{}")
            writer.close()

    run(scenario)


def test_what_comes_behind_a_refused_request_is_not_even_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[bytes] = []
    on_url = BoundedProtocol.on_url

    def counted(self: BoundedProtocol, url: bytes) -> None:
        parsed.append(url)
        on_url(self, url)

    monkeypatch.setattr(BoundedProtocol, "on_url", counted)

    async def scenario() -> None:
        async with serving() as (_, address):
            answer = await exchange(address, HEALTH * 1000)
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert answer.count(b"HTTP/1.1") == 1
            assert len(parsed) <= 3

    run(scenario)


def test_of_more_than_two_requests_at_once_none_is_served() -> None:
    asked: list[str] = []

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await app(scope, receive, send)

    async def scenario() -> None:
        async with serving(counting) as (_, address):
            answer = await exchange(address, HEALTH * 1000)
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert b"more than two requests" in answer
            assert answer.count(b"HTTP/1.1 ") == 1
            await health_s(address)
        assert len(asked) == 1

    run(scenario)


def test_many_connections_at_once_are_accepted_a_few_at_a_time() -> None:
    async def scenario() -> None:
        async with serving() as (server, address):
            # The event loop has no turn meanwhile: all of them wait.
            waiting = [socket.create_connection(address, timeout=5) for _ in range(300)]
            known, most = 0, 0
            while known < len(waiting):
                await asyncio.sleep(0)
                before, known = known, len(server.server_state.connections)
                most = max(most, known - before)
            assert most <= 16
            for sock in waiting:
                sock.close()

    run(scenario)


def test_a_body_that_drips_in_is_handed_over_whole_and_a_large_one_in_parts() -> None:
    parts: list[int] = []

    async def measuring(scope: Any, receive: Any, send: Any) -> None:
        async def measured() -> Any:
            message = await receive()
            parts.append(len(message["body"]))
            return message

        await app(scope, measured, send)

    async def scenario() -> None:
        async with serving(measuring) as (_, address):
            reader, writer = await asyncio.open_connection(*address, limit=1 << 20)
            for body in (b"{" + b" " * 48 + b"}", b"a" * 300_000 + b"}"):
                head, _ = echo(body)
                writer.write(head)
                for at in range(50):
                    writer.write(body[len(body) * at // 50 : len(body) * (at + 1) // 50])
                    await writer.drain()
                    await asyncio.sleep(0.002)
                assert (await reader.readuntil(b"}")).endswith(body)
            writer.close()
        assert parts[0] == 50
        assert 2 <= len(parts[1:]) <= 6
        assert sum(parts[1:]) == 300_001

    run(scenario)


def test_a_thousand_idle_connections_do_not_delay_health() -> None:
    async def scenario() -> None:
        async with serving(header_timeout_s=60) as (_, address):
            idle = [await asyncio.open_connection(*address) for _ in range(1000)]
            took = sorted([await health_s(address) for _ in range(21)])
            assert took[10] < 0.1
            for _, writer in idle:
                writer.close()

    run(scenario)


def test_a_client_that_does_not_read_is_hung_up() -> None:
    async def scenario() -> None:
        async with serving() as (server, address):
            sock = socket.create_connection(address)
            sock.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
            ends = time.monotonic() + 20
            await asyncio.sleep(0.5)
            while server.server_state.connections:
                assert time.monotonic() < ends
                await asyncio.sleep(0.1)
            sock.close()

    run(scenario)


def test_a_peer_that_is_answered_before_its_body_ends_is_hung_up() -> None:
    async def scenario() -> None:
        async with serving() as (_, address):
            head = b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 24000000\r\n\r\nx"
            answer = await asyncio.wait_for(exchange(address, head), 10)
            assert answer.startswith(b"HTTP/1.1 200 ")

    run(scenario)


def test_an_answer_that_came_before_the_body_is_there_when_the_body_is_sent() -> None:
    async def scenario() -> None:
        async with serving() as (_, address):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n")
            await asyncio.sleep(0.2)
            for _ in range(20):
                writer.write(b"x" * 100_000)
                await writer.drain()
            answer = await asyncio.wait_for(reader.read(), 10)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert answer.endswith(b"{}")
            writer.close()

    run(scenario)


H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"


def echo(body: bytes, fields: bytes = b"") -> list[bytes]:
    """Head and body of a request that is answered with its body."""
    length = b"Content-Length: %d\r\n" % len(body)
    return [b"POST /echo HTTP/1.1\r\nHost: x\r\n" + fields + length + b"\r\n", body]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_client_that_offers_http2_is_served_with_its_body(at_once: bool) -> None:
    async def scenario() -> None:
        async with serving() as (_, address):
            reader, writer = await asyncio.open_connection(*address)
            for body in (b"first", HEALTH, b"last"):
                parts = echo(body, H2C)
                for part in [b"".join(parts)] if at_once else parts:
                    writer.write(part)
                    await asyncio.sleep(0.05)
                answer = await asyncio.wait_for(reader.readuntil(body), 5)
                assert answer.count(b"HTTP/1.1 200 ") == 1
            writer.close()

    run(scenario)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://[::1 HTTP/1.1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"POST /echo HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nx\r\n0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\nx",
        b"GET /health HTTP/1.1\r\nHost : x\r\n\r\n",
    ],
)
def test_what_is_no_request_is_400_in_the_form_of_errors(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with serving() as (_, address):
            answer = await asyncio.wait_for(exchange(address, sent), 5)
            assert answer.startswith(b"HTTP/1.1 400 ")
            assert b'{"error": {"message": "what was sent is not a request in HTTP/1.1"' in answer
        assert not caplog.records  # strangers fill no log

    run(scenario)


def test_a_request_that_breaks_off_ends_what_works_on_it() -> None:
    async def scenario() -> None:
        async with serving() as (server, address):
            head = b"POST /endless HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
            reader, writer = await asyncio.open_connection(*address)
            writer.write(head)
            await reader.readuntil(CHUNK)
            writer.write(b"zz\r\n")
            with contextlib.suppress(OSError):
                assert b"HTTP/1.1 400" not in await asyncio.wait_for(reader.read(), 5)
            assert not server.server_state.connections
            writer.close()

    run(scenario)


@pytest.mark.parametrize("sent", [b"1;" + b"x" * 4_000_000, b"0\r\n" + b"X: a\r\n" * 600_000])
def test_chunk_extensions_and_trailers_are_bounded_as_headers_are(sent: bytes) -> None:
    async def scenario() -> None:
        async with serving() as (_, address):
            head = b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
            answer = await asyncio.wait_for(exchange(address, head + sent), 10)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
            whole = head + b"1\r\nx\r\n" * 20_000 + b"0\r\nX: a\r\n\r\n"
            reader, writer = await asyncio.open_connection(*address)
            writer.write(whole)
            assert (await asyncio.wait_for(reader.readuntil(b"xx"), 10)).startswith(b"HTTP/1.1 200")
            writer.close()

    run(scenario)


def test_who_is_turned_away_reads_why_though_its_request_was_not_read() -> None:
    async def scenario() -> None:
        async with serving(max_connections_per_address=1, header_timeout_s=60) as (_, address):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(HEALTH.replace(b"/health", b"/endless"))
            await reader.readuntil(b"\r\n\r\n")
            for _ in range(5):
                other, sending = await asyncio.open_connection(*address)
                for part in echo(b"x" * 900_000):
                    sending.write(part)
                    await sending.drain()
                answer = await asyncio.wait_for(other.readuntil(b"}}"), 5)
                assert answer.startswith(b"HTTP/1.1 429 ")
                sending.transport.abort()
            writer.transport.abort()

    run(scenario)
