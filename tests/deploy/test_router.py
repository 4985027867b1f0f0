"""The router's very program before two stand-ins for groups, one of which is slow."""

import collections
import json
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from tests.deploy.chart import CHART
from tests.deploy.conftest import need

POLICY = yaml.safe_load((CHART / "values.yaml").read_text())["router"]["policy"]
FAST_S, SLOW_S = 0.1, 0.8
CLIENTS, REQUESTS = 8, 48


class Group(ThreadingHTTPServer):
    """Answers like a leader, after a while."""

    daemon_threads = True

    def __init__(self, answer_s: float, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer_s, self.status = answer_s, status
        self.counts: collections.Counter[str] = collections.Counter()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Group

    def do_GET(self) -> None:
        self._answer(200, {"object": "list", "data": [{"id": "m", "object": "model"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/v1/completions":
            # The router asks for a prompt's tokens first, and goes on by its text.
            self._answer(404, {})
            return
        self.server.counts["requests"] += 1
        time.sleep(self.server.answer_s)
        self._answer(self.server.status, {"choices": [{"text": "x"}]})

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def route() -> Iterator:
    started: list[subprocess.Popen[bytes]] = []

    def start(*groups: Group) -> str:
        port = free_port()
        command = [
            need("vllm-router"), "--host=127.0.0.1", f"--port={port}", f"--policy={POLICY}",
            f"--prometheus-port={free_port()}", "--disable-retries",
            "--worker-urls", *(group.url for group in groups),
        ]  # fmt: skip
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 40
        while status_of(f"{url}/readiness") != 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        return url

    yield start
    for router in started:
        router.terminate()
        router.wait(20)


def status_of(url: str, body: dict | None = None) -> int:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def test_the_charts_policy_gives_a_slow_group_less(route):
    fast, slow = Group(FAST_S), Group(SLOW_S)
    url = route(fast, slow)

    def ask(number: int) -> int:
        return status_of(f"{url}/v1/completions", {"model": "m", "prompt": f"{number} times"})

    with ThreadPoolExecutor(CLIENTS) as pool:
        assert set(pool.map(ask, range(REQUESTS))) == {200}
    assert fast.counts["requests"] + slow.counts["requests"] == REQUESTS
    assert fast.counts["requests"] > 2 * slow.counts["requests"]


def test_a_refusal_is_the_clients_to_heed(route):
    full = Group(0.0, status=429)
    url = route(full)
    assert status_of(f"{url}/v1/completions", {"model": "m", "prompt": "once"}) == 429
    assert full.counts["requests"] == 1
