"""`plan --traffic`: how many groups of which shape a load needs, and what they and a loss cost."""

import argparse
import json
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rufus_serve.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rufus_serve.bench.workload import Ask
    from rufus_serve.cli.plan_traffic_report import Report
    from rufus_serve.plan.plan import Plan
    from rufus_serve.plan.request import PlanRequest
    from rufus_serve.plan.traffic.demand import Demand
    from rufus_serve.plan.traffic.measures import Slo
    from rufus_serve.plan.traffic.sizing import Candidate, Sized

_CHARACTERS_PER_TOKEN = 4
"""Of English text, for traces whose prompts are no token ids."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The load, the SLO, and what stands in for the planner's numbers."""
    group = parser.add_argument_group("traffic", "what --traffic is told")
    add = group.add_argument
    add("--traffic", action="store_true", help="size groups for a load, by simulation")
    add("--rate", type=float, metavar="R", help="requests a second, Poisson")
    add("--tokens-per-min", type=float, metavar="N", help="instead: prompt and output tokens")
    add("--input-tokens", metavar="N", help="of a prompt: 512, 128:2048 or 400,1600 [512]")
    add("--output-tokens", metavar="N", help="of an answer, likewise [128]")
    add("--trace", type=Path, metavar="FILE", help="JSONL as `bench --file` reads it")
    add("--slo", action="append", metavar="NAME:MS", help="99th percentile: ttft, tpot; repeatable")
    add("--groups", type=int, metavar="R", help="so many groups, instead of the fewest")
    add("--price", type=float, metavar="USD", help="of a node, an hour [a table's]")
    add("--step-times", type=Path, metavar="FILE", help="measured ones, instead of the planner's")
    add("--recover-s", type=float, metavar="S", help="until a lost group is back [the planner's]")
    add("--seed", type=int, metavar="N", help="of arrivals and lengths [0]")
    add("--plot", type=Path, metavar="FILE.png", help="draw latencies by number of groups")


def refuse_without_traffic(args: argparse.Namespace) -> None:
    """Raise ConfigError for an option that nothing would read."""
    names = ("rate", "tokens_per_min", "input_tokens", "output_tokens", "trace", "slo", "groups",
             "price", "step_times", "recover_s", "seed", "plot")  # fmt: skip
    for name in names:
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} needs --traffic")


def run(args: argparse.Namespace, request: "PlanRequest") -> int:
    """Print what the load needs; ends with 3 if no shape keeps the SLO."""
    _check(args)
    from rufus_serve.cli.plan_traffic_plot import draw
    from rufus_serve.cli.plan_traffic_report import as_json, print_report

    report = _report(args, request)
    if args.json:
        print(json.dumps(as_json(report), indent=2))
    else:
        print_report(report)
    if args.plot:
        draw(args.plot, report)
    return 0 if report.keeps_slo else ModelError.exit_code


def _check(args: argparse.Namespace) -> None:
    """Refuse before minutes of simulation what could only fail after them."""
    if find_spec("simpy") is None:
        raise ConfigError("--traffic needs simpy: pip install 'rufus-serve[traffic]'")
    for name in ("groups", "recover_s", "rate", "tokens_per_min"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {value:g}")
    if args.price is not None and not 0 <= args.price < float("inf"):
        raise ConfigError(f"--price must be 0 or more, got {args.price:g}")
    if args.plot is None:
        return
    if args.plot.suffix != ".png" or not args.plot.absolute().parent.is_dir():
        raise ConfigError(f"--plot {args.plot}: name a .png file in a folder that exists")
    if find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib: pip install 'rufus-serve[traffic]'")


def _report(args: argparse.Namespace, request: "PlanRequest") -> "Report":
    from rufus_serve.cli.plan_traffic_report import Report
    from rufus_serve.plan.traffic.prices import PRICES_AS_OF, USD_PER_HOUR
    from rufus_serve.plan.traffic.sizing import curve, lose_one

    demand, slo = _demand(args, request.max_model_len), _slo(args)
    plans, candidates = _candidates(args, request)
    sizes = _sizes(args, candidates, demand, slo)
    best = next(each for each in candidates if each.shape == sizes[0].shape)
    num_groups = sizes[0].num_groups
    table_price = USD_PER_HOUR.get(request.instance.name)
    return Report(
        demand=demand,
        slo=slo,
        instance=request.instance.name,
        sizes=tuple(sizes),
        plan=plans.get(best.shape),
        loss=lose_one(best, demand, slo, num_groups) if num_groups > 1 else None,
        curve=curve(best, demand, slo, num_groups) if args.plot else (),
        recover_s=best.recover_s,
        price=table_price if args.price is None else args.price,
        price_source=PRICES_AS_OF if args.price is None else "as given",
    )


def _demand(args: argparse.Namespace, max_model_len: int) -> "Demand":
    from rufus_serve.plan.traffic.demand import Load, read_lengths

    if args.rate is not None and args.tokens_per_min is not None:
        raise ConfigError("--rate and --tokens-per-min exclude each other")
    if args.trace is not None:
        return _trace(args, max_model_len)
    prompt = read_lengths(args.input_tokens or "512")
    output = read_lengths(args.output_tokens or "128")
    rate = args.rate
    if args.tokens_per_min is not None:
        rate = args.tokens_per_min / 60 / (prompt.mean + output.mean)
    if rate is None:
        raise ConfigError("--traffic needs --rate, --tokens-per-min or --trace")
    return Load(
        rate=rate, prompt=prompt, output=output, max_model_len=max_model_len, seed=args.seed or 0
    )


def _trace(args: argparse.Namespace, max_model_len: int) -> "Demand":
    from rufus_serve.bench.arrivals import OpenLoop
    from rufus_serve.bench.workload import from_file
    from rufus_serve.plan.traffic.demand import Arrival, Trace

    if args.tokens_per_min is not None or args.input_tokens is not None:
        raise ConfigError("a trace has its own prompts; --trace goes with --rate at most")
    default = args.output_tokens or "128"
    if not default.isdigit() or int(default) < 1:
        raise ConfigError(f"--output-tokens must be one number beside --trace, got {default!r}")
    asked = from_file(args.trace, output_tokens=int(default))
    moments = [each.at_s for each in asked if each.at_s is not None]
    if args.rate is not None:
        moments = [at for _, at in zip(asked, OpenLoop(args.rate, 1, args.seed or 0).starts())]  # noqa: B905
    if len(moments) < len(asked):
        raise ConfigError(f"{args.trace}: give `at` in every line, or --rate")
    requests = [
        Arrival(at_s=at, tokens=_tokens(each), num_output=each.max_tokens)
        for at, each in sorted(zip(moments, asked, strict=True), key=lambda pair: pair[0])
    ]
    for each in requests:
        if each.num_output < 1 or not 0 < len(each.tokens) <= max_model_len - each.num_output:
            raise ConfigError(
                f"{args.trace}: a request of {len(each.tokens)} prompt and {each.num_output} "
                f"output tokens does not fit max_model_len {max_model_len}"
            )
    return Trace(tuple(requests))


def _tokens(asked: "Ask") -> "Sequence[int]":
    if isinstance(asked.prompt, tuple):
        return asked.prompt
    text = asked.prompt or "".join(str(each.get("content", "")) for each in asked.messages)
    size = _CHARACTERS_PER_TOKEN
    return [zlib.crc32(text[at : at + size].encode()) for at in range(0, len(text), size)]


def _slo(args: argparse.Namespace) -> "Slo":
    from rufus_serve.bench.summary import read_slo
    from rufus_serve.plan.traffic.measures import Slo

    limits = read_slo(args.slo or ["ttft:1000"])
    if "e2e" in limits or min(limits.values()) <= 0:
        raise ConfigError("plan --traffic knows --slo ttft:MS and tpot:MS, above 0")
    return Slo(ttft_ms=limits.get("ttft", 0.0), tpot_ms=limits.get("tpot", 0.0))


def _candidates(
    args: argparse.Namespace, request: "PlanRequest"
) -> "tuple[dict[Any, Plan], list[Candidate]]":
    """Plans by shape, none for measured step times; and what is to be tried."""
    from rufus_serve.plan.traffic import group_candidates
    from rufus_serve.plan.traffic.step_times import read_measured

    if args.step_times is not None:
        measured = read_measured(args.step_times)
        if args.recover_s is None:
            raise ConfigError("--step-times needs --recover-s: the planner knows only Trainium's")
        made = group_candidates.of_measured(
            measured, num_nodes=args.nodes or 1, recover_s=args.recover_s
        )
        return {}, [made]
    plans = list(group_candidates.plans(
        request, nodes_given=args.nodes is not None, batch_given=args.max_num_seqs is not None
    ))  # fmt: skip
    if not plans:
        raise ModelError("the model fits no group of this kind; `rufus-serve plan` says why")
    made_all = [group_candidates.of_plan(plan, recover_s=args.recover_s) for plan in plans]
    return {each.shape: plan for each, plan in zip(made_all, plans, strict=True)}, made_all


def _sizes(
    args: argparse.Namespace, candidates: "list[Candidate]", demand: "Demand", slo: "Slo"
) -> "list[Sized]":
    from rich.console import Console

    from rufus_serve.plan.traffic.sizing import size, size_given

    console = Console(stderr=True)
    with console.status("simulating") as status:

        def tell(name: str) -> None:
            status.update(f"simulating groups of {name}")

        if args.groups is not None:
            return size_given(candidates, demand, slo, args.groups)
        return size(candidates, demand, slo, on_shape=tell)
