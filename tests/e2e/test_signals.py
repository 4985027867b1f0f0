"""SIGTERM and Ctrl-C, while starting and while serving."""

import contextlib
import http.client
import json
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e.server import Server, serving

LOCAL = "--cluster.kind=local"


class Stream:
    """A streamed completion being read."""

    def __init__(self, server: Server, *, count: int) -> None:
        body = {"model": server.name, "prompt": "word", "max_tokens": count, "ignore_eos": True}
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        headers = {"Content-Type": "application/json"}
        self._connection.request(
            "POST", "/v1/completions", json.dumps(body | {"stream": True}), headers
        )
        self._answer = self._connection.getresponse()
        assert self._answer.status == 200
        self._answer.readline()

    def rest(self) -> str:
        """All that still comes."""
        try:
            return self._answer.read().decode()
        except http.client.IncompleteRead as error:
            return error.partial.decode()
        finally:
            self._connection.close()


def seen(server: Server, what: str) -> bool:
    """Whether the log says `what`, or a process is called so."""
    names = []
    for process in server.processes():
        with contextlib.suppress(psutil.Error):
            names.append(process.name())
    return what in server.log or what in names


@pytest.mark.parametrize(
    ("cluster", "after", "number"),
    [
        ((LOCAL,), "", signal.SIGTERM),
        ((LOCAL,), "", signal.SIGINT),
        ((LOCAL,), "loading after", signal.SIGINT),
        ((LOCAL,), "epoch 1 ready", signal.SIGTERM),
        (("--nodes=2",), "gcs_server", signal.SIGTERM),
        (("--nodes=2",), "cluster: ", signal.SIGINT),
    ],
    ids=["early", "early interrupt", "loading", "leader starting", "ray starting", "ray placed"],
)
def test_a_start_can_be_stopped(
    tiny_model: Path, cluster: tuple[str, ...], after: str, number: signal.Signals
) -> None:
    server = Server(tiny_model, *cluster)
    try:
        time.sleep(1.0)
        deadline = time.monotonic() + 60
        while after and not seen(server, after) and time.monotonic() < deadline:
            time.sleep(0.02)
        code = server.stop(number, deadline_s=40)
        assert code in (0, 130, -number)
        assert "Traceback" not in server.log
        server.assert_nothing_remains()
    finally:
        server.remove()


def refusal(server: Server) -> tuple[int, str]:
    """Status and Retry-After of a new request."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        body = {"model": server.name, "prompt": "word", "max_tokens": 1}
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Retry-After", "")
    finally:
        connection.close()


def await_draining(server: Server) -> None:
    deadline = time.monotonic() + 10
    while server.get("/ready")[0] == 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_running_stream_finishes_while_new_requests_are_turned_away(tiny_model: Path) -> None:
    with serving(tiny_model, LOCAL) as server:
        stream = Stream(server, count=250)
        server.process.send_signal(signal.SIGTERM)
        await_draining(server)
        assert refusal(server) == (503, "5")
        assert server.get("/health")[0] == 200
        rest = stream.rest()
        assert '"finish_reason":"length"' in rest
        assert rest.endswith("data: [DONE]\n\n")
        assert server.process.wait(10) == 0
        server.assert_nothing_remains()


def test_a_stream_that_outlasts_the_grace_ends_with_an_error(tiny_model: Path) -> None:
    with serving(tiny_model, LOCAL, "--timeouts.shutdown-grace-s=1") as server:
        stream = Stream(server, count=4000)
        began = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        rest = stream.rest()
        assert "the server is stopping" in rest.splitlines()[-2]
        assert server.process.wait(10) == 0
        assert time.monotonic() - began < 8
        server.assert_nothing_remains()


def test_a_second_signal_ends_the_server_at_once(tiny_model: Path) -> None:
    with serving(tiny_model, "--nodes=2") as server:
        stream = Stream(server, count=4000)
        server.process.send_signal(signal.SIGINT)
        await_draining(server)
        began = time.monotonic()
        server.process.send_signal(signal.SIGINT)
        server.process.wait(15)
        assert time.monotonic() - began < 5
        assert '"finish_reason":"length"' not in stream.rest()
        server.assert_nothing_remains()
