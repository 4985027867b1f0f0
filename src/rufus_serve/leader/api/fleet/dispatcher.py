"""`Dispatcher`: which engine has which request, and what happens to them when one is lost.

It alone knows what was delivered. A move is: forget the wire id, abort it there if anybody
listens, send the request with its delivered tokens under another wire id. Outputs of wire ids
that are not known any more are dropped. So nothing is delivered twice, without any word of the
engine that is left.

A group may be closed though its engine lives: its followers are lost, or it is to have no work.
What runs there goes to other groups that have room, and else stays, to go on when it is back.

A request may be what kills engines or groups. After `_SUSPECT_DEATHS` it is tried with no other
suspect beside it, until it brings a token; if its engine dies before, it fails alone.
"""

import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

from rufus_serve.leader.api.fleet.flight import EnginePort, Flight
from rufus_serve.leader.delivered import take_delivered
from rufus_serve.leader.step_counts import Durations
from rufus_serve.routing import Router

_log = logging.getLogger(__name__)
_SUSPECT_DEATHS = 2
_MAX_DEATHS = 5
MAX_MOVES = 8
"""Times that a request goes on in another group; then it waits for the one it is in."""
_FAR = 16
"""Tokens of an engine that clear a request of its predecessors' deaths."""


class Dispatcher:
    """No sockets, nothing of vLLM but the shape of its messages; event loop thread only.

    `deliver` takes EngineCoreOutputs for the front end, `fail` a request id and an error for it.
    """

    def __init__(
        self,
        deliver: Callable[[Any], None],
        fail: Callable[[str, str], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._deliver, self._tell_failure, self._clock = deliver, fail, clock
        self._ports: list[EnginePort] = []
        self._flights: dict[str, Flight] = {}
        self._by_wire_id: dict[str, Flight] = {}
        self._waiting: deque[Flight] = deque()
        """Those that no engine has; who comes first, gets a place first."""
        self._on_trial: dict[EnginePort, Flight] = {}
        self._ending: set[EnginePort] = set()
        """Engines that aborted what nobody asked them to: they get nothing more."""
        self._closed: set[int] = set()
        """Groups that get nothing for now."""
        self._failed: set[int] = set()
        """Those of them that will never be back."""
        self._router = Router()
        self.num_tokens: Counter[int] = Counter()
        """Delivered so far, by group."""
        self.moves: defaultdict[int, Durations] = defaultdict(Durations)
        """By group that requests left: how long each waited for its next token."""

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._flights)

    def num_in(self, group: int) -> int:
        """Requests that a group's engine has."""
        return len(self._in(group))

    # ---- engines and groups ----

    def add_port(self, port: EnginePort) -> None:
        """An engine is there: those that waited for one go to it."""
        self._ports.append(port)
        self._router.engine_came(port.group, cache_tokens=port.capacity.cache_tokens)
        self._fill()

    def lose_port(self, port: EnginePort) -> None:
        """An engine is dead: its requests go on elsewhere, or wait for the next one."""
        if port not in self._ports:
            return
        self._ports.remove(port)
        self._ending.discard(port)
        for flight in [each for each in self._flights.values() if each.port is port]:
            self._count_death(flight)
        moving = [flight for flight in self._flights.values() if flight.port is port]
        for flight in moving:
            self._detach(flight)
        self._return(moving)
        self._fill()

    def close(self, group: int, *, lost: bool, for_good: bool = False) -> None:
        """Send it nothing, and have what it runs go on elsewhere; `lost`: its followers are."""
        was_open = group not in self._closed
        self._closed.add(group)
        if for_good:
            self._failed.add(group)
        if lost:
            self._router.forget(group)
        if lost and was_open:
            for flight in self._in(group):
                self._count_death(flight)
        self._fill()

    def open(self, group: int) -> None:
        """It takes requests (again)."""
        self._closed.discard(group)
        self._failed.discard(group)
        self._fill()

    # ---- requests ----

    def add(self, request: Any) -> None:
        """An EngineCoreRequest of the front end."""
        take_delivered(request.sampling_params)  # A client may have written it there.
        flight = self._flights[request.request_id] = Flight(request)
        self._waiting.append(flight)
        self._fill()

    def abort(self, request_ids: Iterable[str]) -> None:
        """The front end wants no more of these."""
        for request_id in request_ids:
            flight = self._flights.pop(request_id, None)
            if flight is None:
                continue
            if flight.port is None:
                self._waiting.remove(flight)
            self._detach(flight)
        self._fill()

    def take(self, port: EnginePort, outputs: Any) -> None:
        """EngineCoreOutputs of an engine: what is still wanted, by the front end's names."""
        kept, cut = [], []
        num_open, num_on_trial = self.num_open, len(self._on_trial)
        for output in outputs.outputs:
            flight = self._by_wire_id.get(output.request_id)
            if flight is None:
                continue
            if str(output.finish_reason) == "abort":
                # We forget before we abort, so the engine did this by itself: it is ending, and
                # a request with a grammar would fail there.
                self._ending.add(port)
                self._detach(flight, abort=False)
                cut.append(flight)
                continue
            self._take_one(flight, output)
            kept.append(output)
        outputs.outputs, outputs.engine_index = kept, port.group
        if kept or outputs.scheduler_stats is not None:
            self._deliver(outputs)
        self._return(cut)
        if cut or self.num_open < num_open or len(self._on_trial) < num_on_trial:
            self._fill()

    def _take_one(self, flight: Flight, output: Any) -> None:
        output.request_id = flight.request_id
        flight.delivered.extend(output.new_token_ids)
        self.num_tokens[flight.home] += len(output.new_token_ids)
        if output.new_token_ids:
            self._router.began(flight.request_id)
            self._note_move(flight)
        port = flight.port
        if port is not None and self._on_trial.get(port) is flight:
            del self._on_trial[port]
        if output.finish_reason is not None:
            self._detach(flight, abort=False)
            del self._flights[flight.request_id]
            num_output = len(flight.delivered)
            self._router.ended(flight.home, flight.wanted(), num_output=num_output)

    def _note_move(self, flight: Flight) -> None:
        """It brought a token: count how long it waited for that, if it came from elsewhere."""
        if flight.came_from is not None:
            self.moves[flight.came_from].add(self._clock() - flight.left_at)
            flight.came_from = None

    # ---- steps that these share ----

    def _in(self, group: int) -> list[Flight]:
        return [
            flight
            for flight in self._flights.values()
            if flight.port is not None and flight.port.group == group
        ]

    def _return(self, flights: Iterable[Flight]) -> None:
        """Those that ran elsewhere, then those that waited there, come before all that wait."""
        oldest_first = sorted(flights, key=_age)
        oldest_first.sort(key=lambda flight: not flight.delivered)
        self._waiting.extendleft(reversed(oldest_first))

    def _fill(self) -> None:
        """Use what room there is: for those in groups that are closed, and those that wait.

        An engine takes a request with delivered tokens before those that it has. So of these
        the oldest is sent last; of the others, first.
        """
        stuck = sorted((each for group in self._closed for each in self._in(group)), key=_age)
        placed = [flight for flight in stuck if self._place(flight)]
        still_waiting: deque[Flight] = deque()
        for flight in self._waiting:
            (placed if self._place(flight) else still_waiting).append(flight)
        self._waiting = still_waiting
        begun = sorted((flight for flight in placed if flight.delivered), key=_age, reverse=True)
        for flight in (*begun, *(flight for flight in placed if not flight.delivered)):
            self._send(flight)

    def _takes(self, port: EnginePort, flight: Flight) -> bool:
        if not port.accepts or port.gone or port in self._ending or port.group in self._closed:
            return False
        if flight.num_deaths >= _SUSPECT_DEATHS and port in self._on_trial:
            return False
        # What had begun needs a place at once, or it may as well wait for its own group.
        at_home = port.group == flight.home or flight.home in self._failed
        return (
            not flight.delivered
            or at_home
            or (flight.num_moves < MAX_MOVES and self._has_room(port, flight))
        )

    def _has_room(self, port: EnginePort, flight: Flight) -> bool:
        there = [each for each in self._flights.values() if each.port is port]
        num_tokens = flight.num_tokens + sum(each.num_tokens for each in there)
        limit = port.capacity
        return len(there) < limit.sequences and num_tokens < limit.tokens

    def _place(self, flight: Flight) -> bool:
        """Give it a place where it costs least, to be sent there; False if none takes it."""
        ports = [port for port in self._ports if self._takes(port, flight)]
        if not ports:
            return False
        wanted = flight.wanted()
        keys = wanted.keys()
        port = min(ports, key=lambda port: self._router.cost(port.group, wanted, keys))
        self._detach(flight)
        if flight.num_deaths >= _SUSPECT_DEATHS:
            self._on_trial[port] = flight
        if flight.delivered and port.group != flight.home:
            flight.num_moves += 1
            flight.came_from = flight.home if flight.came_from is None else flight.came_from
        flight.port, flight.home = port, port.group
        self._router.sent(port.group, wanted, keys)
        return True

    def _send(self, flight: Flight) -> None:
        assert flight.port is not None
        flight.num_sent += 1
        flight.num_delivered_before = len(flight.delivered)
        self._by_wire_id[flight.wire_id] = flight
        flight.port.add(flight.on_the_wire())

    def _detach(self, flight: Flight, *, abort: bool = True) -> None:
        """Take no more of it from where it runs, and have it aborted there if anybody listens."""
        port, flight.port = flight.port, None
        if port is None:
            return
        del self._by_wire_id[flight.wire_id]
        if flight.came_from is None:
            flight.left_at = self._clock()
        self._router.left(flight.request_id)
        if self._on_trial.get(port) is flight:
            del self._on_trial[port]
        if abort and not port.gone:
            port.abort([flight.wire_id])

    def _count_death(self, flight: Flight) -> None:
        """What runs it is lost: it fails if that is its fault."""
        assert flight.port is not None
        alone = self._on_trial.get(flight.port) is flight
        if len(flight.delivered) - flight.num_delivered_before >= _FAR:
            flight.num_deaths = 0
        flight.num_deaths += 1
        if alone or flight.num_deaths >= _MAX_DEATHS:
            self._detach(flight)
            self._fail(flight)

    def _fail(self, flight: Flight) -> None:
        """Answer it with an error: it must not take another engine with it."""
        message = (
            f"given up: {flight.num_deaths} engines died while they ran this request; "
            "the server's log says why"
        )
        _log.error("request %s %s", flight.request_id, message)
        del self._flights[flight.request_id]
        self._tell_failure(flight.request_id, message)


def _age(flight: Flight) -> float:
    return float(flight.request.arrival_time)
