"""`Flight`: an open request, and all that another engine needs to go on with it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rufus_serve.leader.delivered import with_delivered


class EnginePort(Protocol):
    """What a dispatcher needs of an `EngineLink`."""

    @property
    def group(self) -> int:
        """The group whose engine it is."""

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
    """Engines that died under it, since one got far with it."""

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

    def on_the_wire(self) -> Any:
        """The request as an engine gets it: under its wire id, with the delivered tokens."""
        wire = copy.copy(self.request)
        wire.request_id, wire.client_index = self.wire_id, 0
        if self.delivered:
            wire.sampling_params = with_delivered(self.request.sampling_params, self.delivered)
        return wire
