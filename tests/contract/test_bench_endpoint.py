"""`rufus-serve bench` against an endpoint whose every delay is known."""

import asyncio
import csv
import json
import signal
import subprocess
import sys
import time

import pytest
from aiohttp import web
from threaded_endpoint import ThreadedEndpoint

from rufus_serve.cli.main import main
from rufus_serve.errors import ConfigError, EndpointError

FIRST_S, NEXT_S = 0.05, 0.02


class Endpoint(ThreadedEndpoint):
    """Streams as many pieces as tokens were asked for; keeps what it was sent.

    A completion's second piece is half a character; a chat is opened at once, and closed.
    """

    def __init__(self):
        self.seen, self.keys, self.refuse = [], [], False
        streamed = ("/v1/completions", "/v1/chat/completions")
        routes = [web.post(path, self._stream) for path in streamed]
        super().__init__([web.get("/v1/models", self._models), *routes])

    async def _models(self, request):
        self.keys.append(request.headers.get("Authorization"))
        return web.json_response({"data": [{"id": "echo"}]})

    async def _stream(self, request):
        body = await request.json()
        self.seen.append(body)
        if self.refuse:
            return web.json_response({"error": {"message": "too many"}}, status=429)
        answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        is_chat = "messages" in body
        if is_chat:
            opening = {"role": "assistant", "content": ""}
            await self._event(answer, {"choices": [{"delta": opening}]})
        for index in range(body["max_tokens"]):
            await asyncio.sleep(NEXT_S if index else FIRST_S)
            text = f"w{index} "
            choice = {"delta": {"content": text}} if is_chat else {"text": text * (index != 1)}
            await self._event(answer, {"choices": [choice]})
        if is_chat:
            await self._event(answer, {"choices": [{"delta": {}, "finish_reason": "stop"}]})
        usage = {"prompt_tokens": 7, "completion_tokens": body["max_tokens"]}
        await self._event(answer, {"choices": [], "usage": usage})
        await answer.write(b"data: [DONE]\n\n")
        return answer

    async def _event(self, answer, event):
        await answer.write(b"data: " + json.dumps(event).encode() + b"\n\n")


@pytest.fixture
def endpoint():
    server = Endpoint()
    yield server
    server.close()


def test_what_is_measured_is_what_the_endpoint_did(endpoint, tmp_path):
    out = tmp_path / "run.json"
    words = ["bench", "--url", endpoint.url, "--requests", "8", "--concurrency", "4"]
    words += ["--output-tokens", "5", "--out", str(out), "--api-key", "secret"]
    assert main(words) == 0
    (load,) = json.loads(out.read_text())["loads"]
    found = load["summary"]
    assert (found["requests"], found["output_tokens"], found["input_tokens"]) == (8, 40, 56)
    # What the endpoint waited is the least that a client can see.
    assert found["ttft_ms"]["p50"] >= 1e3 * FIRST_S
    assert found["tpot_ms"]["p50"] >= 1e3 * NEXT_S
    assert found["e2e_ms"]["p50"] >= 1e3 * (FIRST_S + 4 * NEXT_S)
    assert {len(each["arrivals_s"]) for each in load["requests"]} == {5}
    assert endpoint.keys == ["Bearer secret"]
    assert {body["model"] for body in endpoint.seen} == {"echo"}


def test_a_sweep_writes_a_line_and_a_point_a_rate(endpoint, tmp_path):
    table, plot = tmp_path / "sweep.csv", tmp_path / "sweep.png"
    words = ["bench", "--url", endpoint.url + "/v1", "--requests", "4", "--rates", "20:40"]
    words += ["--output-tokens", "2", "--slo", "ttft:5000", "--out", str(table), "--out", str(plot)]
    assert main(words) == 0
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["load"] for row in rows] == ["20/s", "40/s"]
    assert all(float(row["goodput_per_s"]) == float(row["requests_per_s"]) for row in rows)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_the_first_word_of_a_chat_counts_and_not_its_opening(endpoint, tmp_path):
    out = tmp_path / "run.json"
    words = ["bench", "--url", endpoint.url, "--workload", "turns", "--requests", "2"]
    assert main([*words, "--turns", "1", "--output-tokens", "3", "--out", str(out)]) == 0
    (load,) = json.loads(out.read_text())["loads"]
    assert load["summary"]["ttft_ms"]["p50"] >= 1e3 * FIRST_S
    assert {len(each["arrivals_s"]) for each in load["requests"]} == {3}


def test_a_turn_carries_all_that_was_said_before(endpoint):
    words = ["bench", "--url", endpoint.url, "--workload", "turns", "--requests", "3"]
    assert main([*words, "--turns", "3", "--output-tokens", "2", "--concurrency", "1"]) == 0
    roles = [[message["role"] for message in body["messages"]] for body in endpoint.seen]
    turn = ["user", "assistant"]
    assert roles == [["user"], [*turn, "user"], [*turn, *turn, "user"]]
    assert endpoint.seen[1]["messages"][1]["content"] == "w0 w1 "


def test_a_trace_keeps_its_moments(endpoint, tmp_path):
    lines = [{"prompt": "a", "at": 0, "max_tokens": 1}, {"prompt": "b", "at": 0.4, "max_tokens": 1}]
    path, out = tmp_path / "trace.jsonl", tmp_path / "run.json"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert main(["bench", "--url", endpoint.url, "--file", str(path), "--out", str(out)]) == 0
    starts = [each["start_s"] for each in json.loads(out.read_text())["loads"][0]["requests"]]
    assert starts[1] - starts[0] >= 0.39


def test_refusals_are_counted_by_their_words(endpoint, capsys):
    endpoint.refuse = True
    assert main(["bench", "--url", endpoint.url, "--requests", "3"]) == EndpointError.exit_code
    printed = capsys.readouterr()
    assert "3 x HTTP 429: too many" in printed.out
    assert "no request was answered: HTTP 429: too many" in printed.err


def test_ctrl_c_keeps_what_was_measured(endpoint, tmp_path):
    out = tmp_path / "run.json"
    words = ["bench", "--url", endpoint.url, "--requests", "1000", "--concurrency", "2"]
    words += ["--output-tokens", "2", "--out", str(out)]
    command = [sys.executable, "-m", "rufus_serve.cli.main", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while len(endpoint.seen) < 8:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    (load,) = json.loads(out.read_text())["loads"]
    assert 6 <= load["summary"]["requests"] < 1000


def test_a_dead_or_a_wrong_server_is_told_in_one_line(endpoint, capsys):
    assert main(["bench", "--url", "http://127.0.0.1:9"]) == EndpointError.exit_code
    assert "is the server running?" in capsys.readouterr().err
    assert main(["bench", "--url", endpoint.url + "/nothing"]) == EndpointError.exit_code
    assert "HTTP 404" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rate", "1", "--concurrency", "2"], "exclude each other"),
        (["--requests", "0"], "--requests must be at least 1"),
        (["--out", "run.txt"], "results are written as"),
        (["--out", "nowhere/run.csv"], "there is no folder"),
        (["--workload", "file"], "needs --file"),
    ],
)
def test_bad_options_are_told(endpoint, capsys, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code = main(["bench", "--url", endpoint.url, "--output-tokens", "1", *words])
    assert code == ConfigError.exit_code
    assert message in capsys.readouterr().err
    assert endpoint.seen == []
