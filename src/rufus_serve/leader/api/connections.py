"""Which of the open connections go when there are too many, of all or of one address."""

import resource
from collections import Counter
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

    def drop(self) -> None:
        """Hang up at once."""
        ...


class Room:
    """The open connections, at most `most`, and `most_per_address` of one; 0 of it: no bound.

    For one more goes the one that a request is awaited of for longest: of its own address if that
    has too many, else of the address that has most such ones. Who holds many idle ones gains
    nothing by them. None of it looks at all connections: whoever keeps the server full and comes
    again and again would have it do nothing else.
    """

    def __init__(self, most: int, *, most_per_address: int) -> None:
        self._most, self._most_per_address = most, most_per_address
        self._inside: set[Connection] = set()
        self._num_of: Counter[str] = Counter()
        self._awaited: dict[str, dict[Connection, None]] = {}
        """By address, longest first; no address without any."""

    def enter(self, connection: Connection) -> None:
        """Take one more, of which a request is awaited.

        Raises:
            HttpError: 429 or 503: there are too many, and none of them is idle.
        """
        address, limit = connection.address, self._most_per_address
        if limit and self._num_of[address] >= limit and not self._drop_one_of(address):
            raise HttpError(429, f"{limit} connections are open from {address}, the most allowed")
        if len(self._inside) >= self._most and not self._drop_one_of(self._greediest()):
            raise HttpError(503, f"{self._most} connections are open, the most allowed")
        self._inside.add(connection)
        self._num_of[address] += 1
        self.awaits(connection)

    def awaits(self, connection: Connection) -> None:
        """Note that from now on a request of it is awaited."""
        if connection in self._inside:
            self.serves(connection)
            self._awaited.setdefault(connection.address, {})[connection] = None

    def serves(self, connection: Connection) -> None:
        """Note that none is awaited: one is served."""
        awaited = self._awaited.get(connection.address, {})
        awaited.pop(connection, None)
        if not awaited:
            self._awaited.pop(connection.address, None)

    def leave(self, connection: Connection) -> None:
        """Forget a connection, if it is known."""
        if connection not in self._inside:
            return
        self.serves(connection)
        self._inside.discard(connection)
        self._num_of[connection.address] -= 1
        if not self._num_of[connection.address]:
            del self._num_of[connection.address]

    def _greediest(self) -> str:
        return max(self._awaited, key=lambda each: len(self._awaited[each]), default="")

    def _drop_one_of(self, address: str) -> bool:
        longest = next(iter(self._awaited.get(address, ())), None)
        if longest is None:
            return False
        self.leave(longest)
        longest.drop()
        return True
