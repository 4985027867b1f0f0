"""An `Overview` as rich draws it."""

import time
from collections.abc import Mapping, Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from rufus_serve.leader.api.overview.views import GroupView, Load, Moment, Overview, Spread
from rufus_serve.protocol.messages import FollowerStatus

_COLOURS = {"ready": "green", "failed": "bold red", "stopped": "red"}
_MOMENTS = 12
_BAR = 20


def screen(overview: Overview) -> RenderableType:
    """All of it."""
    title = Text.assemble(
        ("rufus-serve ", "bold"), overview.model, "  ", _state(overview.state),
        f"  {overview.detail}" if overview.detail else "",
    )  # fmt: skip
    parts: list[RenderableType] = [title]
    if not overview.cluster_up:
        parts.append(Text(overview.cluster_detail, style="red"))
    parts += [_load(overview.load), _groups(overview.groups), _followers(overview.followers)]
    return Group(*parts, _timeline(overview.timeline))


def unreachable(why: str) -> RenderableType:
    """In its place while the server does not answer."""
    return Text(why, style="bold red")


def _state(state: str) -> Text:
    return Text(state, style=_COLOURS.get(state, "yellow"))


def _load(load: Load) -> Table:
    table = Table(expand=True)
    heads = ("output tokens/s", "prompt tokens/s", "open", *(
        f"{name} ms p50 / p90 / p99" for name in ("TTFT", "TPOT", "ITL")
    ))  # fmt: skip
    for head in heads:
        table.add_column(head)
    table.add_row(
        f"{load.output_tokens_per_s:.1f}", f"{load.prompt_tokens_per_s:.1f}",
        str(load.open_sequences), *map(_spread, (load.ttft_ms, load.tpot_ms, load.itl_ms)),
    )  # fmt: skip
    return table


def _spread(found: Spread | None) -> str:
    return f"{found.p50:.1f} / {found.p90:.1f} / {found.p99:.1f}" if found else "-"


def _groups(groups: Sequence[GroupView]) -> Table:
    table = Table(
        "group", "state", "epoch", "restarts", "running", "waiting", "KV", "step ms", "parts ms",
        expand=True,
    )  # fmt: skip
    for each in groups:
        table.add_row(
            str(each.group), _state(each.state), str(each.epoch), str(each.restarts),
            str(each.running), str(each.waiting), f"{_bar(each.kv_usage)} {each.kv_usage:.0%}",
            _times(each.step_ms), _times(each.parts_ms),
        )  # fmt: skip
    return table


def _bar(share: float) -> str:
    full = round(share * _BAR)
    return "█" * full + "░" * (_BAR - full)


def _times(times: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in times.items()) or "-"


def _followers(followers: Sequence[FollowerStatus]) -> Table:
    table = Table("follower", "host", "process", "phase", "for", "step ms", "loads", expand=True)
    for each in followers:
        table.add_row(
            f"{each.group}/{each.node_rank}", escape(each.host), str(each.pid), _state(each.phase),
            f"{each.phase_s:.0f} s", f"{1e3 * each.step_s:.1f}", str(each.load_count),
        )  # fmt: skip
    return table


def _timeline(moments: Sequence[Moment]) -> Text:
    lines = [
        f"{time.strftime('%H:%M:%S', time.localtime(each.at))}  group {each.group}: {each.what}"
        for each in moments[:_MOMENTS]
    ]
    return Text("\n".join(lines))
