import asyncio

import pytest

from rufus_serve.batch.lines import BatchLine, Reply
from rufus_serve.batch.own_server import OwnServer
from rufus_serve.batch.runner import NotNow
from rufus_serve.errors import LeaderError, RestartBudgetSpent

LINE = BatchLine(number=1, custom_id="a", url="/v1/completions", body={})


class Process:
    """Has ended with `code`, or runs."""

    def __init__(self, code: int | None) -> None:
        self.code = code

    def poll(self) -> int | None:
        return self.code


async def refuse(_: BatchLine) -> Reply:
    raise NotNow("connection refused")


def ask(code: int | None) -> None:
    asyncio.run(OwnServer("http://127.0.0.1:1", Process(code)).watched(refuse)(LINE))


def test_a_server_that_runs_is_asked_again() -> None:
    with pytest.raises(NotNow, match="connection refused"):
        ask(None)


@pytest.mark.parametrize(
    ("code", "kind"), [(RestartBudgetSpent.exit_code, RestartBudgetSpent), (-9, LeaderError)]
)
def test_a_server_that_has_ended_ends_the_batch_with_its_error(
    code: int, kind: type[Exception]
) -> None:
    with pytest.raises(kind, match=f"ended with exit code {code}; answers so far are kept"):
        ask(code)
