"""`rufus-serve batch` against an endpoint that can be slow, full or gone."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from aiohttp import web
from threaded_endpoint import ThreadedEndpoint

from rufus_serve.cli.main import main
from rufus_serve.errors import BatchError, ConfigError, EndpointError

CHAT = "/v1/chat/completions"


class Endpoint(ThreadedEndpoint):
    """Answers chats with their own words; refuses those that say so."""

    def __init__(self):
        self.asked, self.full_times, self.held_after, self.keys = Counter(), 0, 1000, set()
        super().__init__([web.get("/v1/models", self._models), web.post(CHAT, self._chat)])

    async def _models(self, request):
        return web.json_response({"data": []})

    async def _chat(self, request):
        self.keys.add(request.headers.get("Authorization"))
        text = (await request.json())["messages"][0]["content"]
        if self.full_times:
            self.full_times -= 1
            return web.json_response({}, status=429, headers={"Retry-After": "0"})
        self.asked[text] += 1
        while self.asked.total() > self.held_after:
            await asyncio.sleep(0.01)
        if text == "refuse":
            return web.json_response({"error": {"message": "no"}}, status=400)
        return web.json_response({"choices": [{"message": {"content": text}}]})


@pytest.fixture
def endpoint():
    server = Endpoint()
    yield server
    server.close()


def write(path: Path, texts: list[str]) -> Path:
    bodies = [{"messages": [{"role": "user", "content": text}]} for text in texts]
    lines = [
        {"custom_id": f"id-{i}", "method": "POST", "url": CHAT, "body": body}
        for i, body in enumerate(bodies)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def words(endpoint, folder: Path, *more: str) -> list[str]:
    files = ["-i", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl")]
    return ["batch", *files, "--url", endpoint.url, *more]


def answers(path: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {
        line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"]
        for line in lines
    }
    assert len(found) == len(lines)
    return found


def test_every_line_gets_its_answer_though_the_endpoint_is_full_at_times(endpoint, tmp_path):
    texts = [f"word {i}" for i in range(12)]
    write(tmp_path / "in.jsonl", texts)
    endpoint.full_times = 4
    assert main(words(endpoint, tmp_path, "--api-key", "secret")) == 0
    assert answers(tmp_path / "out.jsonl") == {f"id-{i}": text for i, text in enumerate(texts)}
    assert endpoint.keys == {"Bearer secret"}
    assert (tmp_path / "out.errors.jsonl").read_text() == ""


def run_until(endpoint, folder, *, answered):
    """A run of its own process, that waits for ever once so many lines are answered."""
    endpoint.held_after = answered
    command = [sys.executable, "-m", "rufus_serve.cli.main"]
    command += words(endpoint, folder, "--concurrency", "3")
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    out, deadline = folder / "out.jsonl", time.monotonic() + 30
    while not out.exists() or out.read_bytes().count(b"\n") < answered:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def test_a_killed_run_goes_on_without_a_line_lost_or_twice(endpoint, tmp_path):
    texts = [f"word {i}" for i in range(60)]
    write(tmp_path / "in.jsonl", texts)
    out = tmp_path / "out.jsonl"
    process = run_until(endpoint, tmp_path, answered=20)
    process.kill()
    process.communicate(timeout=30)
    endpoint.held_after = 1000
    assert main(words(endpoint, tmp_path)) == 0
    assert answers(out) == {f"id-{i}": text for i, text in enumerate(texts)}
    # Only what was under way when it was killed was asked again.
    assert endpoint.asked.total() <= 60 + 3


def test_ctrl_c_keeps_what_was_answered_and_says_how_to_go_on(endpoint, tmp_path):
    texts = [f"word {i}" for i in range(30)]
    write(tmp_path / "in.jsonl", texts)
    out = tmp_path / "out.jsonl"
    process = run_until(endpoint, tmp_path, answered=10)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    endpoint.held_after = 1000
    assert main(words(endpoint, tmp_path)) == 0
    assert answers(out) == {f"id-{i}": text for i, text in enumerate(texts)}


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to mount a file system of its own")
def test_a_disk_that_is_full_is_told_and_what_it_holds_is_kept(endpoint, tmp_path, capsys):
    texts = [f"word {i} {'x' * 300}" for i in range(40)]
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems may not be mounted here")
    try:
        write(tmp_path / "in.jsonl", texts)
        asked = words(endpoint, tmp_path, "-o", str(small / "out.jsonl"))
        assert main(asked) == BatchError.exit_code
        assert "No space left on device" in capsys.readouterr().err
        kept = answers(small / "out.jsonl")
        assert 0 < len(kept) < len(texts)
        assert kept.items() <= {f"id-{i}": text for i, text in enumerate(texts)}.items()
        subprocess.run(["mount", "-o", "remount,size=1m", str(small)], check=True)
        assert main(asked) == 0
        assert answers(small / "out.jsonl") == {f"id-{i}": text for i, text in enumerate(texts)}
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_failures_stand_apart_and_can_be_asked_again(endpoint, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", ["one", "refuse"])
    with source.open("a") as file:
        file.write("not json\n")
    for _ in range(2):
        assert main(words(endpoint, tmp_path)) == BatchError.exit_code
        assert "2 of 3 lines failed" in capsys.readouterr().err
        assert set(answers(tmp_path / "out.jsonl")) == {"id-0"}
        lines = (tmp_path / "out.errors.jsonl").read_text().splitlines()
        assert [json.loads(line)["custom_id"] for line in lines] in (["id-1", None], [None, "id-1"])
    assert endpoint.asked == {"one": 1, "refuse": 1}
    write(source, ["one", "mended"])
    assert main(words(endpoint, tmp_path, "--retry-failed")) == 0
    assert endpoint.asked == {"one": 1, "refuse": 1, "mended": 1}


def test_a_dead_a_wrong_and_a_dying_server_are_told(endpoint, tmp_path, capsys):
    write(tmp_path / "in.jsonl", ["one"])
    files = words(endpoint, tmp_path)[:-1]
    assert main([*files, "http://127.0.0.1:9"]) == EndpointError.exit_code
    assert "is the server running?" in capsys.readouterr().err
    assert main([*files, endpoint.url + "/nothing"]) == EndpointError.exit_code
    assert "HTTP 404" in capsys.readouterr().err
    endpoint.full_times = 1000
    assert main([*files, endpoint.url, "--patience-s", "0.1"]) == EndpointError.exit_code
    assert "goes on from there" in capsys.readouterr().err


def test_bad_files_are_told_before_anything_is_asked(endpoint, tmp_path, capsys):
    assert main(words(endpoint, tmp_path)) == ConfigError.exit_code
    (tmp_path / "in.jsonl").write_text("\n")
    assert main(words(endpoint, tmp_path)) == ConfigError.exit_code
    assert "holds no request" in capsys.readouterr().err
    write(tmp_path / "in.jsonl", ["one"])
    same = ["--errors", str(tmp_path / "out.jsonl")]
    assert main(words(endpoint, tmp_path, *same)) == ConfigError.exit_code
    assert not endpoint.asked


def test_a_server_that_cannot_start_ends_the_batch_with_its_code(endpoint, tmp_path):
    write(tmp_path / "in.jsonl", ["one"])
    arguments = words(endpoint, tmp_path, "--", str(tmp_path / "no-model"))
    command = [sys.executable, "-m", "rufus_serve.cli.main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "before it was ready" in done.stderr
