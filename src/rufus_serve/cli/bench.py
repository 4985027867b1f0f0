"""Load an OpenAI endpoint and measure its streams: TTFT, TPOT, ITL, end to end, tokens/s, goodput.

A closed loop (--concurrency) keeps so many requests in flight; an open one (--rate, --rates,
or `at` in a file's lines) sends them by the clock. Ctrl-C keeps what was measured.
"""

import argparse
import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rufus_serve.cli.endpoint_flags import add_key_argument, add_url_argument
from rufus_serve.client import base_url
from rufus_serve.errors import ConfigError, EndpointError

if TYPE_CHECKING:
    from rufus_serve.bench.arrivals import Arrivals
    from rufus_serve.bench.runner import Run
    from rufus_serve.bench.stream import Endpoint
    from rufus_serve.bench.summary import Summary
    from rufus_serve.bench.workload import Ask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Endpoint, workload, load and results."""
    add = parser.add_argument
    add_url_argument(parser)
    add("--model", default="", help="name of the model [the first that the endpoint serves]")
    add_key_argument(parser)
    add("--workload", choices=("random", "turns", "file"), default="random",
        help="random token ids, conversations, or --file [random]")  # fmt: skip
    add("--file", type=Path, help="JSONL: prompt or messages, max_tokens, at (seconds)")
    add("--requests", type=int, default=100, metavar="N", help="of each load [100]")
    add("--input-tokens", type=int, default=128, metavar="N", help="of a prompt [128]")
    add("--output-tokens", type=int, default=64, metavar="N", help="of an answer [64]")
    add("--shared-tokens", type=int, default=0, metavar="N", help="equal beginnings [0]")
    add("--kinds", type=int, default=1, metavar="N", help="different equal beginnings [1]")
    add("--turns", type=int, default=4, metavar="N", help="of a conversation [4]")
    add("--vocab-size", type=int, default=30000, metavar="N", help="random ids are below [30000]")
    add("--stop-at-eos", action="store_true",
        help="let random prompts' answers end early; for servers without ignore_eos")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of prompts and arrivals [0]")
    add("--concurrency", type=int, metavar="N", help="requests in flight [8]")
    add("--rate", type=float, metavar="R", help="requests a second, Poisson")
    add("--rates", metavar="A:B", help="a sweep: 1:32 doubles, 1,4,9 as written")
    add("--burst", type=int, default=1, metavar="N", help="requests that come together [1]")
    add("--slo", action="append", default=[], metavar="NAME:MS",
        help="goodput counts answers within it: ttft, tpot, e2e; repeatable")  # fmt: skip
    add("--timeout-s", type=float, default=600, metavar="S", help="of one request [600]")
    add("--out", type=Path, action="append", default=[], metavar="FILE",
        help="write FILE.json, .csv or .png; repeatable")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run every load, print a table, write the files."""
    try:
        import aiohttp  # noqa: F401 - named here rather than at the first request
    except ImportError as error:
        raise ConfigError("bench needs aiohttp: pip install 'rufus-serve[bench]'") from error
    from rufus_serve.bench import report
    from rufus_serve.bench.summary import read_slo, summarize

    for path in args.out:
        report.check(path)
    slo, asked = read_slo(args.slo), _asked(args)
    endpoint, loads = _endpoint(args), _loads(args, asked)
    runs, interrupted = _run_all(endpoint, loads, asked)
    summaries = [summarize(each.records, load=each.arrivals.name, slo=slo) for each in runs]
    _print(summaries)
    for path in args.out:
        report.write(path, summaries, runs)
        print(f"wrote {path}")
    if interrupted:
        raise KeyboardInterrupt
    if not any(summary.requests for summary in summaries):
        raise EndpointError(f"no request was answered: {next(iter(summaries[0].errors))}")
    return 0


def _endpoint(args: argparse.Namespace) -> "Endpoint":
    import msgspec

    from rufus_serve.bench.runner import served_model
    from rufus_serve.bench.stream import Endpoint

    url = base_url(args.url)
    found = Endpoint(url=url, model=args.model, api_key=args.api_key, timeout_s=args.timeout_s)
    named = asyncio.run(served_model(found))
    return found if found.model else msgspec.structs.replace(found, model=named)


def _asked(args: argparse.Namespace) -> "list[Ask]":
    from rufus_serve.bench.workload import Shape, conversations, from_file, made_up

    _positive(args, "requests", "input_tokens", "output_tokens", "kinds", "turns", "burst")
    if args.workload == "file" or args.file:
        if args.file is None:
            raise ConfigError("--workload file needs --file")
        return from_file(args.file, output_tokens=args.output_tokens)
    shape = Shape(
        num_requests=args.requests,
        input_tokens=args.input_tokens,
        output_tokens=args.output_tokens,
        shared_tokens=args.shared_tokens,
        kinds=args.kinds,
        turns=args.turns,
        vocab_size=args.vocab_size,
        exact=not args.stop_at_eos,
        seed=args.seed,
    )
    return conversations(shape) if args.workload == "turns" else made_up(shape)


def _positive(args: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(args, name) < 1:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} must be at least 1, got {getattr(args, name)}")


def _loads(args: argparse.Namespace, asked: "list[Ask]") -> "list[Arrivals]":
    from rufus_serve.bench.arrivals import ClosedLoop, OpenLoop, Trace, rates

    given = [name for name in ("concurrency", "rate", "rates") if getattr(args, name) is not None]
    if len(given) > 1:
        raise ConfigError(f"--{given[0]} and --{given[1]} exclude each other")
    if args.rate is not None or args.rates:
        chosen = rates(args.rates or str(args.rate))
        return [OpenLoop(rate, args.burst, args.seed) for rate in chosen]
    moments = [each.at_s for each in asked if each.at_s is not None]
    if not given and moments:
        if len(moments) < len(asked):
            raise ConfigError("either every line of the file says `at`, or none")
        return [Trace(tuple(moments))]
    if args.concurrency is not None:
        _positive(args, "concurrency")
    return [ClosedLoop(args.concurrency or 8)]


def _run_all(
    endpoint: "Endpoint", loads: "list[Arrivals]", asked: "list[Ask]"
) -> "tuple[list[Run], bool]":
    """The runs, the last one perhaps cut short, and whether it was."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from rufus_serve.bench.runner import Run

    runs: list[Run] = []
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        for load in loads:
            task = progress.add_task(load.name, total=len(asked))

            def advance(_: Any, task: Any = task) -> None:
                progress.advance(task)

            runs.append(Run(endpoint, load, asked, on_record=advance))
            try:
                asyncio.run(runs[-1].go())
            except KeyboardInterrupt:
                return runs, True
    return runs, False


def _print(summaries: "list[Summary]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("load", "requests", "errors", "tokens/s", "goodput/s", *(
        f"{name} ms p50 / p90 / p99" for name in ("TTFT", "TPOT", "ITL", "E2E")
    ))  # fmt: skip
    for each in summaries:
        spreads = (each.ttft_ms, each.tpot_ms, each.itl_ms, each.e2e_ms)
        goodput = "-" if each.goodput_per_s is None else f"{each.goodput_per_s:.2f}"
        table.add_row(
            each.load, str(each.requests), str(sum(each.errors.values())),
            f"{each.output_tokens_per_s:.1f}", goodput, *map(_percentiles, spreads),
        )  # fmt: skip
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    for each in summaries:
        for error, count in each.errors.items():
            console.print(f"{count} x {error}", markup=False)


def _percentiles(spread: dict[str, float]) -> str:
    return " / ".join(f"{spread[name]:.1f}" for name in ("p50", "p90", "p99")) if spread else "-"
