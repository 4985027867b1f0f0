"""`Flight`: an open request, and all that another engine needs to go on with it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rufus_serve.leader.delivered import with_delivered
from rufus_serve.routing import Wanted


@dataclass(frozen=True)
class Capacity:
    """How much a group computes at once."""

    sequences: int
    tokens: int
    """That its KV cache holds."""
    caches: bool = True
    """Whether it keeps beginnings for later requests."""

    @property
    def cache_tokens(self) -> int:
        """Tokens of beginnings that it may keep."""
        return self.tokens if self.caches else 0


_MOST_TOKENS = 1 << 30
"""Of a request that says nothing of it."""


class EnginePort(Protocol):
    """What a dispatcher needs of an `EngineLink`."""

    @property
    def group(self) -> int:
        """The group whose engine it is."""

    @property
    def capacity(self) -> Capacity:
        """How much it runs at once; more waits there."""

    @property
    def accepts(self) -> bool:
        """New requests may be sent."""

    @property
    def gone(self) -> bool:
        """Nothing can be sent."""

    def add(self, request: Any) -> None:
        """Send it an EngineCoreRequest."""

    def abort(self, wire_ids: Sequence[str]) -> None:
        """Have it forget requests."""


@dataclass(eq=False)
class Flight:
    """One request of the front end; the dispatcher owns and mutates it."""

    request: Any
    """An EngineCoreRequest."""
    delivered: list[int] = field(default_factory=list)
    """Tokens that went to the front end."""
    port: EnginePort | None = None
    """Where it runs."""
    num_sent: int = 0
    num_delivered_before: int = 0
    """Tokens that it was sent with."""
    num_deaths: int = 0
    """Engines or groups that were lost under it, since one got far with it."""
    num_moves: int = 0
    """Times that it went on in another group than where it ran."""
    home: int = -1
    """The group that it ran in last."""
    came_from: int | None = None
    """The group that it left, until another one brings a token."""
    left_at: float = 0.0
    """When it was last taken out of a group, on the dispatcher's clock."""

    @property
    def request_id(self) -> str:
        """The front end's name for it."""
        return str(self.request.request_id)

    @property
    def wire_id(self) -> str:
        """The engine's name for it: a new one each time it is sent.

        The old one may still be known where it is sent to, or be hit by an abort under way.
        """
        return f"{self.request_id}~{self.num_sent}"

    @property
    def num_tokens(self) -> int:
        """Tokens of its context."""
        return len(self.request.prompt_token_ids or ()) + len(self.delivered)

    def wanted(self) -> Wanted:
        """The request as far as its way is concerned."""
        request, params = self.request, self.request.sampling_params
        most = getattr(params, "max_tokens", None) or _MOST_TOKENS
        adapter = getattr(request.lora_request, "lora_int_id", None)
        return Wanted(
            name=self.request_id,
            tokens=[*(request.prompt_token_ids or ()), *self.delivered],
            most_left=max(1, most - len(self.delivered)),
            root=(request.cache_salt, adapter),
            session=request.session_id or "",
        )

    def on_the_wire(self) -> Any:
        """The request as an engine gets it: under its wire id, with the delivered tokens."""
        wire = copy.copy(self.request)
        wire.request_id, wire.client_index = self.wire_id, 0
        if self.delivered:
            wire.sampling_params = with_delivered(self.request.sampling_params, self.delivered)
        return wire
