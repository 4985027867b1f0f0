"""Which of the open connections go when there are too many, of all or of one address."""

from collections.abc import Collection
from typing import Protocol

from rufus_serve.config.schema import HttpConfig
from rufus_serve.leader.api.http_error import HttpError


class Connection(Protocol):
    """What is known of a peer's connection."""

    @property
    def address(self) -> str:
        """The peer's, without the port."""
        ...

    @property
    def idle_since(self) -> float | None:
        """Since when we wait for a request (monotonic); None while one is served, or at the end."""
        ...

    def drop(self) -> None:
        """Hang up at once."""
        ...


def make_room(connections: Collection[Connection], address: str, http: HttpConfig) -> None:
    """See that one more connection, from `address`, is within the bounds of `http`.

    For it goes the one that we have waited for longest: of its own address if that has too many,
    else of the address that has most. Who holds many idle ones gains nothing by them.

    Raises:
        HttpError: 429 or 503: none of those is idle.
    """
    most = http.max_connections_per_address
    own = [each for each in connections if each.address == address] if most else []
    if most and len(own) >= most and not _drop_idle(own):
        raise HttpError(429, f"{most} connections are open from {address}, the most allowed")
    if len(connections) >= http.max_connections and not _drop_idle(connections):
        raise HttpError(
            503, f"{http.max_connections} connections are open, the most allowed", retry_after_s=1
        )


def _drop_idle(connections: Collection[Connection]) -> bool:
    by_address: dict[str, list[Connection]] = {}
    for each in connections:
        if each.idle_since is not None:
            by_address.setdefault(each.address, []).append(each)
    if not by_address:
        return False
    greediest = max(by_address.values(), key=len)
    min(greediest, key=lambda each: each.idle_since or 0.0).drop()
    return True
