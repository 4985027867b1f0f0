"""A plan as tables for readers and as JSON for programs."""

from typing import Any

import msgspec
import yaml
from rich.console import Console, JustifyMethod
from rich.table import Table

from rufus_serve.plan.advice import advice
from rufus_serve.plan.latency import (
    DECODE_FORMULA,
    EFA_FORMULA,
    KV_EFFICIENCY,
    LAYER_MS,
    PREFILL_EFFICIENCY,
    PREFILL_FORMULA,
    ROW_MS,
    DecodeEstimate,
)
from rufus_serve.plan.plan import Plan
from rufus_serve.plan.published import PUBLISHED, Comparison, compare
from rufus_serve.units import gib

_TEXT_COLUMNS = ("part", "what", "model", "on", "weights", "")

_WIDTH = 100
"""Least width: a narrower terminal wraps lines rather than losing numbers."""

_CALIBRATION = (
    "Decode constants are fitted to trn1.32xlarge runs at tensor parallel degree 32; other "
    "hardware and degrees are extrapolated. The time to first token is a rough guide only."
)


def plan_as_json(plan: Plan, *, published: bool) -> dict[str, Any]:
    """Everything the tables show, with bytes, milliseconds and constants unrounded."""
    memory, compiled = msgspec.to_builtins(plan.memory), plan.request.compiled
    latency = {
        "decode": [_decode_as_json(estimate) for estimate in plan.decode],
        "first_token_ms": plan.first_token_ms,
        "formula": {
            "decode": DECODE_FORMULA, "efa": EFA_FORMULA, "prefill": PREFILL_FORMULA,
            "layer_ms": LAYER_MS, "row_ms": ROW_MS, "kv_efficiency": KV_EFFICIENCY,
            "prefill_efficiency": PREFILL_EFFICIENCY, "calibration": _CALIBRATION,
        },
    }  # fmt: skip
    result = {
        "request": msgspec.to_builtins(plan.request),
        "num_params": plan.shape.num_params,
        "tensor_parallel": msgspec.to_builtins(plan.tp),
        "fits": plan.fits,
        "memory_per_core_bytes": {**memory, "free": plan.memory.free},
        "draft_per_core_bytes": msgspec.to_builtins(plan.draft),
        "capacity": msgspec.to_builtins(plan.capacity),
        "settings": plan.request.settings,
        "graphs": {
            "prefill": compiled.prefill,
            "decode": compiled.context,
        },
        "start_up": msgspec.to_builtins(plan.start_up) | {"recover_s": plan.start_up.recover_s},
        "latency": latency,
        "advice": msgspec.to_builtins(advice(plan)),
    }
    if published:
        result["published"] = [msgspec.to_builtins(compare(run)) for run in PUBLISHED]
    return result


def print_plan(plan: Plan, *, published: bool) -> None:
    """Print the plan to standard output."""
    console = Console(highlight=False, width=max(Console().width, _WIDTH))
    console.print(_headline(plan), soft_wrap=True)
    for table in (_memory_table(plan), _capacity_table(plan), _decode_table(plan)):
        console.print(table)
    _print_latency_notes(console, plan)
    _print_start_up(console, plan)
    for item in advice(plan):
        source = f" [{item.source}]" if item.source else ""
        console.print(f"{item.level}: {item.text}{source}", markup=False, soft_wrap=True)
    settings = yaml.safe_dump(plan.request.settings, sort_keys=False, default_flow_style=None)
    console.print(f"\nsettings:\n{settings}", markup=False, soft_wrap=True)
    if published:
        _print_published(console, [compare(run) for run in PUBLISHED])


def _headline(plan: Plan) -> str:
    request, tp = plan.request, plan.tp
    nodes = f"{request.num_nodes} x {request.instance.name}"
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    return (
        f"{plan.shape.model_type}, {plan.shape.num_params / 1e9:.2f} B parameters, "
        f"{request.weights}, on {nodes}: {verdict}\n"
        f"tensor parallel degree {tp.degree}: {tp.q_heads_per_core} query and "
        f"{tp.kv_heads_per_core} KV heads per core"
    )


def _memory_table(plan: Plan) -> Table:
    request, memory = plan.request, plan.memory
    table = _table("Memory of one core", "part", "size", "what")
    kv = f"{request.max_num_seqs} sequences of {request.max_model_len} tokens"
    copies = plan.tp.kv_replication
    replicated = f", KV heads held {copies:g} times" if copies > 1 else ""
    table.add_row("weights", gib(memory.weights), "replicated KV projections included")
    table.add_row("KV cache", gib(memory.kv), kv + replicated)
    if request.draft is not None:
        draft_kv = plan.draft.kv_per_token * memory.kv // memory.kv_per_token
        of_kv = f"of the weights, and {gib(draft_kv)} of the KV cache"
        table.add_row("draft model", gib(plan.draft.weights), of_kv)
    table.add_row("scratch", gib(memory.scratch), "runtime, graphs, activations (assumed)")
    table.add_row("free", gib(memory.free), f"of {gib(memory.hbm)}")
    return table


def _capacity_table(plan: Plan) -> Table:
    table = _table("Sequences that fit", *[f"{item.context:,}" for item in plan.capacity])
    table.add_row(*[f"{item.sequences:,}" for item in plan.capacity])
    return table


def _decode_table(plan: Plan) -> Table:
    title = f"Decode at {plan.request.max_model_len:,} tokens of context (ms)"
    columns = ["max_num_seqs", "weights", "layers", "rows", "KV"]
    across = plan.request.num_nodes > 1
    columns += ["EFA"] * across + ["a token", "tokens/s"]
    table = _table(title, *columns)
    for item in plan.decode:
        terms = (item.weights_ms, item.layers_ms, item.rows_ms, item.kv_ms)
        efa = [_span(item.efa_min_ms, item.efa_max_ms)] * across
        total = _span(item.min_ms, item.max_ms)
        cells = [f"{term:.2f}" for term in terms]
        table.add_row(str(item.rows), *cells, *efa, total, f"{item.tokens_per_s:,.0f}")
    return table


def _print_latency_notes(console: Console, plan: Plan) -> None:
    lines = ["every step computes all max_num_seqs rows, so a lone sequence takes as long"]
    lines.append(f"decode = {DECODE_FORMULA}")
    if plan.request.draft is not None:
        lines.append("drafts are not in these times: a fused decode takes longer, and brings more")
    if plan.request.num_nodes > 1:
        lines.append(f"EFA = {EFA_FORMULA}")
    lines.append(
        f"first token of a {plan.request.prompt_tokens:,}-token prompt: about "
        f"{plan.first_token_ms:,.0f} ms = {PREFILL_FORMULA}"
    )
    console.print("\n".join([*lines, _CALIBRATION, ""]), markup=False, soft_wrap=True)


def _print_start_up(console: Console, plan: Plan) -> None:
    start, compiled = plan.start_up, plan.request.compiled
    console.print(
        f"graphs: {start.num_graphs}; prefill {list(compiled.prefill)}, decode of "
        f"{compiled.max_num_seqs} rows at context {list(compiled.context)}\n"
        f"compile: {start.compile_class}, once; shard: {start.shard_once_s:,.0f} s, once; load: "
        f"{start.load_sharded_s:,.0f} s from local shards, else {start.load_unsharded_class}\n"
        f"recover from the loss of a node: about {start.recover_s:,.0f} s once it is noticed, with "
        "artifacts on local disks; every follower starts, loads and warms up\n",
        markup=False,
        soft_wrap=True,
    )


def _print_published(console: Console, comparisons: list[Comparison]) -> None:
    table = _table(
        "Published runs and these formulas (ms)",
        "model", "on", "weights", "batch", "in/out",
        "token", "formula", "error", "first", "formula", "error", "",
    )  # fmt: skip
    notes: list[str] = []
    for item in comparisons:
        run, mark = item.run, "fit" if item.run.fitted else ""
        if run.note:
            notes.append(run.note)
            mark = f"({len(notes)})"
        tokens = f"{run.tokens_in}/{run.tokens_out}" if run.tokens_in else "?"
        table.add_row(
            run.model, run.instance.partition(".")[0], run.weights.replace("bfloat", "bf"),
            str(run.rows), tokens, _number(run.tpot_ms), _number(item.tpot_ms),
            _error(item.tpot_error), _number(run.ttft_ms), _number(item.ttft_ms),
            _error(item.ttft_error), mark,
        )  # fmt: skip
    console.print(table)
    footnotes = [f"({number}) {note}" for number, note in enumerate(notes, 1)]
    footnotes.append("fit: the decode constants were fitted to this row; ?: not published")
    console.print("\n".join(footnotes), markup=False)


def _decode_as_json(estimate: DecodeEstimate) -> dict[str, Any]:
    totals = {"min_ms": estimate.min_ms, "max_ms": estimate.max_ms}
    return {
        **msgspec.to_builtins(estimate), **totals, "tokens_per_s": estimate.tokens_per_s
    }  # fmt: skip


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        justify: JustifyMethod = "left" if column in _TEXT_COLUMNS else "right"
        table.add_column(column, justify=justify, no_wrap=True)
    return table


def _span(low: float, high: float) -> str:
    return f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _error(value: float | None) -> str:
    return "" if value is None else f"{value:+.0%}"
