"""A load whose every stream must be whole."""

from collections.abc import Sequence
from pathlib import Path

from rufus_serve.bench.arrivals import OpenLoop, Trace
from rufus_serve.bench.runner import Run
from rufus_serve.bench.stream import Endpoint, Record
from rufus_serve.bench.workload import Ask
from serving_servers import MODEL


async def whole_answers(url: str, arrivals: OpenLoop | Trace, asked: Sequence[Ask]) -> list[Record]:
    """Send `asked` to the demo model at `url`; ends the program unless every stream is whole."""
    run = Run(Endpoint(url=url, model=Path(MODEL).name), arrivals, asked)
    await run.go()
    if errors := [record.error for record in run.records if record.error]:
        raise SystemExit(f"{len(errors)} streams failed at {url}: {errors[0]}")
    return run.records
