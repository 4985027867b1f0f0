"""Which of the open connections go when there are too many, of all or of one address."""

import resource
from collections.abc import Collection
from typing import Protocol

from rufus_serve.leader.api.http_error import HttpError

_OWN_FILES = 256
"""Descriptors kept for what is no client's: engines' sockets, logs, libraries."""


def affordable_connections(wanted: int) -> int:
    """`wanted`, or as many as descriptors suffice for; raises their limit as far as it may.

    Without one left nobody is let in, not even to ask for /health.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OWN_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    return max(1, soft - _OWN_FILES)


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


def make_room(
    connections: Collection[Connection], address: str, *, most: int, most_per_address: int
) -> None:
    """See that there are no more than `most` with one more, from `address`; 0 of it: no bound.

    For it goes the one that we have waited for longest: of its own address if that has too many,
    else of the address that has most. Who holds many idle ones gains nothing by them.

    Raises:
        HttpError: 429 or 503: none of those is idle.
    """
    limit = most_per_address
    own = [each for each in connections if each.address == address] if limit else []
    if limit and len(own) >= limit and not _drop_idle(own):
        raise HttpError(429, f"{limit} connections are open from {address}, the most allowed")
    if len(connections) >= most and not _drop_idle(connections):
        raise HttpError(503, f"{most} connections are open, the most allowed")


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
