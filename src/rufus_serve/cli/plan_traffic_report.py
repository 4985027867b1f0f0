"""What `plan --traffic` found, as tables for readers and as JSON for programs."""

from dataclasses import dataclass
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from rufus_serve.plan.advice import advice
from rufus_serve.plan.plan import Plan
from rufus_serve.plan.traffic.demand import Demand
from rufus_serve.plan.traffic.measures import LossMeasures, Slo
from rufus_serve.plan.traffic.sizing import MOST_SIMULATED, MOST_SIMULATED_LOSS, Sized, Try

_WIDTH = 100
_NODE_HOURS_PER_FAILURE = 6335
"""Llama 3 405B's training saw 419 unexpected interruptions in 54 days on 2,048 hosts of GPUs ("The
Llama 3 Herd of Models", table 5); nothing of the kind is published for Trainium."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of it; the first of `sizes` is the one to take."""

    demand: Demand
    slo: Slo
    instance: str
    sizes: tuple[Sized, ...]
    plan: Plan | None
    """Of the shape to take; None with measured step times."""
    loss: LossMeasures | None
    """None if there is one group: then everything waits for its recovery."""
    curve: tuple[Try, ...]
    """Of the shape to take, by number of groups; empty unless it is to be drawn."""
    recover_s: float
    price: float | None
    """USD of a node, an hour."""
    price_source: str

    @property
    def best(self) -> Sized:
        """The shape to take."""
        return self.sizes[0]

    @property
    def keeps_slo(self) -> bool:
        """Whether any does."""
        return not self.best.reason

    @property
    def hours_between_losses(self) -> float:
        """Of any node of the fleet."""
        return _NODE_HOURS_PER_FAILURE / self.best.num_nodes

    def usd_per_hour(self, num_nodes: int) -> float | None:
        """Of so many nodes; None without a price."""
        return None if self.price is None else num_nodes * self.price


def as_json(report: Report) -> dict[str, Any]:
    """Everything the tables show, unrounded."""
    demand, best = report.demand, report.best
    return {
        "demand": {
            "requests_per_s": demand.rate,
            "mean_prompt_tokens": demand.mean_prompt,
            "mean_output_tokens": demand.mean_output,
            "tokens_per_min": _tokens_per_min(demand),
        },
        "slo": msgspec.to_builtins(report.slo),
        "keeps_slo": report.keeps_slo,
        "instance": report.instance,
        "groups": best.num_groups,
        "nodes": best.num_nodes,
        "usd_per_hour": report.usd_per_hour(best.num_nodes),
        "usd_per_node_hour": report.price,
        "price_source": report.price_source if report.price is not None else None,
        "shapes": [
            {**msgspec.to_builtins(each), "usd_per_hour": report.usd_per_hour(each.num_nodes)}
            for each in report.sizes
        ],
        "settings": _settings(report),
        "loss": None if report.loss is None else msgspec.to_builtins(report.loss),
        "recover_s": report.recover_s,
        "curve": msgspec.to_builtins(report.curve),
        "hours_between_losses": report.hours_between_losses,
        "groups_with_spare": best.num_groups + 1,
        "warnings": [] if report.plan is None else [
            item.text for item in advice(report.plan) if item.level == "warning"
        ],
    }  # fmt: skip


def print_report(report: Report) -> None:
    """Print it to standard output."""
    console = Console(highlight=False, width=max(Console().width, _WIDTH))
    console.print(_headline(report), markup=False, soft_wrap=True)
    console.print(_table(report))
    for line in (*_others(report), *_verdict(report), *_loss_lines(report), *_notes(report)):
        console.print(line, markup=False, soft_wrap=True)


def _headline(report: Report) -> str:
    demand, slo = report.demand, report.slo
    limits = [
        f"p99 {name} {limit:g} ms"
        for name, limit in (("TTFT", slo.ttft_ms), ("TPOT", slo.tpot_ms))
        if limit
    ]
    return (
        f"{demand.rate:,.2f} requests/s of {demand.mean_prompt:,.0f} prompt and "
        f"{demand.mean_output:,.0f} output tokens on average, "
        f"{_tokens_per_min(demand):,.0f} tokens/min in all; {', '.join(limits)}"
    )


def _table(report: Report) -> Table:
    title = f"Groups of {report.instance}"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("a group", no_wrap=True)
    for name in ("groups", "nodes", "$/h", "TTFT p50 / p99 ms", "TPOT p50 / p99 ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in report.sizes:
        measures, cost = each.measures, report.usd_per_hour(each.num_nodes)
        if measures is None:
            continue
        table.add_row(
            each.shape.name, f"{each.num_groups:,}", f"{each.num_nodes:,}",
            "?" if cost is None else f"{cost:,.2f}", _spread(measures.ttft_ms),
            _spread(measures.tpot_ms),
        )  # fmt: skip
    return table


def _others(report: Report) -> list[str]:
    """What was not simulated to the end, by reason."""
    reasons: dict[str, list[str]] = {}
    for each in report.sizes:
        if each.measures is None:
            named = f"{each.shape.name} (at least {_groups(each.least_groups)})"
            reasons.setdefault(each.reason, []).append(named)
    return [f"{reason}: {'; '.join(names)}" for reason, names in reasons.items()]


def _verdict(report: Report) -> list[str]:
    best = report.best
    if not report.keeps_slo:
        verb = "does" if best.num_groups == 1 else "do"
        return [f"{_groups(best.num_groups)} {verb} not keep the SLO in any shape."]
    cost = report.usd_per_hour(best.num_nodes)
    price = (
        f"no price of {report.instance} is known; give --price"
        if cost is None
        else f"${cost:,.2f} an hour ({report.price_source})"
    )
    return [f"take {_groups(best.num_groups)} of {best.shape.name}: {price}"]


def _loss_lines(report: Report) -> list[str]:
    best, loss = report.best, report.loss
    every = f"about every {report.hours_between_losses:,.0f} h if a node fails once in "
    every += f"{_NODE_HOURS_PER_FAILURE:,} h (GPU hosts; assumed)"
    if loss is None:
        return [
            f"a lost node stops everything for {report.recover_s:,.0f} s ({every}); "
            "with a second group it would not"
        ]
    spare = report.usd_per_hour(best.num_nodes + best.shape.num_nodes)
    shown = "" if spare is None else f", ${spare:,.2f} an hour"
    return [
        f"a lost node takes 1 of {best.num_groups:,} groups for {loss.recover_s:,.0f} s, {every}: "
        f"{loss.num_moved} streams go on elsewhere, longest pause "
        f"{loss.longest_pause_ms / 1e3:,.1f} s; {loss.tokens_lost_share:.1%} of the output "
        f"comes later; {loss.num_late:,} requests miss the SLO instead of "
        f"{loss.num_late_without:,}",
        f"to keep the SLO meanwhile: {best.num_groups + 1:,} groups{shown}",
    ]


def _notes(report: Report) -> list[str]:
    notes = []
    if report.best.num_groups > MOST_SIMULATED:
        notes.append(
            f"note: more than {MOST_SIMULATED} groups are simulated as {MOST_SIMULATED} with their "
            f"share of the load, a loss as one of at most {MOST_SIMULATED_LOSS}; both are "
            "pessimistic"
        )
    if report.plan is None:
        return [*notes, "step times: measured"]
    notes.append("step times: the planner's, fitted to published trn1 runs; never run on a device")
    warnings = (item for item in advice(report.plan) if item.level == "warning")
    return [*notes, *(f"warning: {item.text}" for item in warnings)]


def _settings(report: Report) -> dict[str, Any] | None:
    if report.plan is None:
        return None
    return {"groups": report.best.num_groups, **report.plan.request.settings}


def _groups(count: int) -> str:
    return "1 group" if count == 1 else f"{count:,} groups"


def _tokens_per_min(demand: Demand) -> float:
    return 60 * demand.rate * (demand.mean_prompt + demand.mean_output)


def _spread(found: dict[str, float]) -> str:
    return f"{found['p50']:,.0f} / {found['p99']:,.0f}" if found else "-"
