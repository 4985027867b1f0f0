import asyncio
import itertools
from collections import Counter
from pathlib import Path

import pytest

from rufus_serve.batch.journal import Journal
from rufus_serve.batch.lines import BatchLine, Fault, Reply
from rufus_serve.batch.runner import BatchRun, NotNow, Pace, closing


def lines(count: int) -> list[BatchLine | Fault]:
    return [
        BatchLine(number=i, custom_id=f"id-{i}", url="/v1/completions", body={})
        for i in range(count)
    ]


class Endpoint:
    """Answers at once, and counts."""

    def __init__(self, status: int = 200) -> None:
        self.asked: Counter[str] = Counter()
        self.now = self.most = 0
        self.status = status

    async def send(self, line: BatchLine) -> Reply:
        self.asked[line.custom_id] += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        self.now -= 1
        return Reply(status=self.status, request_id="r", body={})


def go(folder: Path, endpoint: Endpoint, asked: list[BatchLine | Fault], pace: Pace) -> Journal:
    with closing(Journal(folder / "out", folder / "errors")) as journal:
        asyncio.run(BatchRun(journal, endpoint.send, pace).go(asked))
    return journal


def test_every_line_is_asked_once_and_so_many_at_a_time(tmp_path: Path) -> None:
    endpoint = Endpoint()
    journal = go(tmp_path, endpoint, lines(20), Pace(3))
    assert endpoint.asked == Counter({f"id-{i}": 1 for i in range(20)})
    assert endpoint.most == 3
    assert (journal.completed, journal.failed) == (20, 0)


def test_a_second_run_asks_only_what_is_left(tmp_path: Path) -> None:
    go(tmp_path, Endpoint(), lines(5), Pace(2))
    endpoint = Endpoint()
    go(tmp_path, endpoint, lines(8), Pace(2))
    assert set(endpoint.asked) == {"id-5", "id-6", "id-7"}


def test_refusals_and_faults_stand_apart(tmp_path: Path) -> None:
    fault = Fault(line=9, code="invalid_request", message="no")
    for _ in range(2):
        journal = go(tmp_path, Endpoint(status=400), [*lines(2), fault], Pace(4))
        assert (journal.completed, journal.failed) == (0, 3)


def test_a_stopped_run_finishes_what_is_under_way(tmp_path: Path) -> None:
    endpoint = Endpoint()
    with closing(Journal(tmp_path / "out", tmp_path / "errors")) as journal:
        seen = itertools.count(1)
        run = BatchRun(
            journal, endpoint.send, Pace(2), on_line=lambda: next(seen) == 4 and run.stop()
        )
        asyncio.run(run.go(lines(50)))
    assert 4 <= journal.completed == endpoint.asked.total() <= 6


def test_an_endpoint_that_stays_away_ends_the_run(tmp_path: Path) -> None:
    async def gone(line: BatchLine) -> Reply:
        raise NotNow("gone")

    with closing(Journal(tmp_path / "out", tmp_path / "errors")) as journal:
        run = BatchRun(journal, gone, Pace(2, patience_s=0.0))
        with pytest.raises(NotNow, match="gone"):
            asyncio.run(run.go(lines(3)))
    assert journal.done == set()
