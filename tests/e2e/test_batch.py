"""`rufus-serve batch` with a server of its own, killed and run again."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

TAG = "E2E_BATCH_TAG"
COUNT = 30


class Batch:
    """One input file, and runs over it."""

    def __init__(self, model: Path, folder: Path) -> None:
        self._folder, self._tag = folder, uuid.uuid4().hex
        self.out = folder / "out.jsonl"
        body = {"model": model.name, "max_tokens": 16, "ignore_eos": True}
        lines = [
            {
                "custom_id": f"id-{i}", "method": "POST", "url": "/v1/completions",
                "body": {**body, "prompt": f"{i} "},
            }
            for i in range(COUNT)
        ]  # fmt: skip
        (folder / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        self._command = [
            sys.executable, "-m", "rufus_serve.cli.main", "batch", "-i", str(folder / "in.jsonl"),
            "-o", str(self.out), "--concurrency=2",
            "--", str(model), "--cluster.kind=local", "--max-model-len=512",
            f"--cluster.state-dir={folder / 'state'}",
        ]  # fmt: skip

    def start(self) -> "subprocess.Popen[bytes]":
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                self._command, stdout=log, stderr=log, env=os.environ | {TAG: self._tag}
            )

    @property
    def num_answers(self) -> int:
        return self.out.read_bytes().count(b"\n") if self.out.exists() else 0

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(TAG) == self._tag and process.status() != "zombie":
                    found.append(process)
        return found


@pytest.fixture
def batch(tiny_model: Path, tmp_path: Path) -> Iterator[Batch]:
    found = Batch(tiny_model, tmp_path)
    yield found
    for process in found.processes():
        with contextlib.suppress(psutil.Error):
            process.kill()


def until(condition: object, deadline_s: float, what: str) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.timeout(600)
def test_a_killed_batch_takes_its_server_along_and_goes_on_in_the_next_one(batch: Batch) -> None:
    first = batch.start()
    until(lambda: batch.num_answers >= 3 or first.poll() is not None, 240, "no answers")
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert batch.num_answers < COUNT
    until(lambda: not batch.processes(), 60, "the server outlives its batch")
    second = batch.start()
    assert second.wait(240) == 0
    answered = [json.loads(line) for line in batch.out.read_text().splitlines()]
    assert sorted(line["custom_id"] for line in answered) == sorted(f"id-{i}" for i in range(COUNT))
    assert all(line["response"]["body"]["usage"]["completion_tokens"] == 16 for line in answered)
    assert batch.processes() == []
