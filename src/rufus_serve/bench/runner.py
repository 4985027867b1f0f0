"""All requests of a run, begun when their arrivals say."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import aiohttp
import msgspec

from rufus_serve.bench.arrivals import Arrivals, ClosedLoop
from rufus_serve.bench.stream import Endpoint, Record, ask
from rufus_serve.bench.workload import Ask
from rufus_serve.errors import EndpointError

_CHECK_S = 10.0


@dataclass
class Run:
    """One load, and what came of it so far: kept also when it is cut short."""

    endpoint: Endpoint
    arrivals: Arrivals
    asked: Sequence[Ask]
    on_record: Callable[[Record], None] = lambda _: None
    records: list[Record] = field(default_factory=list)

    async def go(self) -> None:
        """Ask everything."""
        self._began = time.perf_counter()
        async with _session() as session:
            self._session = session
            if isinstance(self.arrivals, ClosedLoop):
                await self._closed(self.arrivals.concurrency)
            else:
                await self._open(self.arrivals)

    async def _closed(self, concurrency: int) -> None:
        waiting = iter(_sessions(self.asked))

        async def user() -> None:
            for turns in waiting:
                await self._converse(turns)

        await asyncio.gather(*(user() for _ in range(concurrency)))

    async def _open(self, arrivals: Arrivals) -> None:
        assert not isinstance(arrivals, ClosedLoop)
        running = []
        for turns, start in zip(_sessions(self.asked), arrivals.starts(), strict=False):
            await asyncio.sleep(self._began + start - time.perf_counter())
            running.append(asyncio.create_task(self._converse(turns)))
        await asyncio.gather(*running)

    async def _converse(self, turns: Sequence[Ask]) -> None:
        """Ask the turns of one session, each with all that was said before."""
        said: tuple[dict[str, str], ...] = ()
        for turn in turns:
            whole = msgspec.structs.replace(turn, messages=(*said, *turn.messages))
            record = await ask(self._session, self.endpoint, whole, began=self._began)
            self.records.append(record)
            self.on_record(record)
            if record.error:
                return
            said = (*whole.messages, {"role": "assistant", "content": record.text})


def _sessions(asked: Sequence[Ask]) -> list[list[Ask]]:
    """Requests by session, in order; one without a session is alone."""
    found: dict[object, list[Ask]] = {}
    for index, each in enumerate(asked):
        found.setdefault(("alone", index) if each.session < 0 else each.session, []).append(each)
    return list(found.values())


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


async def served_model(endpoint: Endpoint) -> str:
    """The first model that the endpoint names.

    Raises:
        EndpointError: nobody answers there, or not as an OpenAI endpoint does.
    """
    url = f"{endpoint.url}/v1/models"
    limit = aiohttp.ClientTimeout(total=_CHECK_S)
    try:
        async with (
            _session() as session,
            session.get(url, headers=endpoint.headers, timeout=limit) as answer,
        ):
            if answer.status != 200:
                raise EndpointError(f"{url} answers HTTP {answer.status}; is the API key right?")
            return str((await answer.json())["data"][0]["id"])
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise EndpointError(f"{url} does not answer: {error}; is the server running?") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise EndpointError(f"{url} is no OpenAI endpoint: its answer names no model") from error
