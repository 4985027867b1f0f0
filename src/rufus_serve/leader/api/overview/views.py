"""What `/overview` answers; `msgspec.json.schema(Overview)` describes it."""

import msgspec

from rufus_serve.protocol.messages import FollowerStatus


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """Percentiles of the last minute, in milliseconds."""

    p50: float
    p90: float
    p99: float


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What the server does for its clients; rates over the last ten seconds."""

    open_sequences: int = 0
    output_tokens_per_s: float = 0.0
    prompt_tokens_per_s: float = 0.0
    ttft_ms: Spread | None = None
    """None where nothing was answered lately."""
    tpot_ms: Spread | None = None
    """Of requests that ended."""
    itl_ms: Spread | None = None


class GroupView(msgspec.Struct, frozen=True, kw_only=True):
    """One group and its engine."""

    group: int
    state: str
    epoch: int
    ready: bool
    restarts: int
    recovery_s: float
    """How long the last recovery took; 0 if there was none."""
    detail: str = ""
    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    """Share of its KV blocks, 0 to 1."""
    prefix_hit_rate: float | None = None
    """Share of prompt tokens found in the cache, over the last minute."""
    step_ms: dict[str, float] = {}
    """Mean by phase, over the last minute."""
    parts_ms: dict[str, float] = {}
    """Time the engine spent a step, by part, over the last minute."""
    padding: dict[str, float] = {}
    """Share of what was computed that only filled up buckets, by phase."""
    skew_ms: float = 0.0
    """Step time of the slowest follower less that of the fastest."""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened."""

    at: float
    """Unix time."""
    group: int
    what: str


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """The server now."""

    at: float
    """Unix time."""
    model: str
    version: str
    state: str
    healthy: bool
    ready: bool
    detail: str
    cluster_up: bool
    cluster_detail: str
    load: Load
    groups: tuple[GroupView, ...]
    followers: tuple[FollowerStatus, ...]
    timeline: tuple[Moment, ...]
    """Newest first."""
