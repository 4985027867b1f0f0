"""`Dispatcher`: which engine has which request, and what happens to them when one is lost.

It alone knows what was delivered. A move is: forget the wire id, abort it there if anybody
listens, send the request with its delivered tokens under another wire id. Outputs of wire ids
that are not known any more are dropped. So nothing is delivered twice, without any word of the
engine that is left.

A request may be what kills engines. After `_SUSPECT_DEATHS` it is tried with no other suspect
beside it, until it brings a token; if its engine dies before, it fails alone.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from rufus_serve.leader.api.fleet.flight import EnginePort, Flight
from rufus_serve.leader.delivered import take_delivered

_log = logging.getLogger(__name__)
_SUSPECT_DEATHS = 2
_MAX_DEATHS = 5
_FAR = 16
"""Tokens of an engine that clear a request of its predecessors' deaths."""


class Dispatcher:
    """No sockets, no clock, nothing of vLLM but the shape of its messages; event loop thread only.

    `deliver` takes EngineCoreOutputs for the front end, `fail` a request id and an error for it.
    """

    def __init__(self, deliver: Callable[[Any], None], fail: Callable[[str, str], None]) -> None:
        self._deliver, self._tell_failure = deliver, fail
        self._ports: list[EnginePort] = []
        self._flights: dict[str, Flight] = {}
        self._by_wire_id: dict[str, Flight] = {}
        self._waiting: deque[Flight] = deque()
        """Those that no engine has; in the order in which they are to be sent."""
        self._on_trial: dict[EnginePort, Flight] = {}
        self._ending: set[EnginePort] = set()
        """Engines that aborted what nobody asked them to: they get nothing more."""
        self.num_tokens = 0
        """Delivered so far, over all requests."""

    @property
    def num_open(self) -> int:
        """Requests that have not ended."""
        return len(self._flights)

    # ---- engines ----

    def add_port(self, port: EnginePort) -> None:
        """An engine is there: those that waited for one go to it."""
        self._ports.append(port)
        self._send_waiting()

    def lose_port(self, port: EnginePort) -> None:
        """An engine is dead: its requests go on elsewhere, or wait for the next one."""
        if port not in self._ports:
            return
        self._ports.remove(port)
        self._ending.discard(port)
        suspect = self._on_trial.pop(port, None)
        moving = [flight for flight in self._flights.values() if flight.port is port]
        for flight in moving:
            if len(flight.delivered) - flight.num_delivered_before >= _FAR:
                flight.num_deaths = 0
            flight.num_deaths += 1
            self._detach(flight)
            if flight is suspect or flight.num_deaths >= _MAX_DEATHS:
                self._fail(flight)
        self._resend(flight for flight in moving if flight.request_id in self._flights)

    # ---- requests ----

    def add(self, request: Any) -> None:
        """An EngineCoreRequest of the front end."""
        take_delivered(request.sampling_params)  # A client may have written it there.
        flight = self._flights[request.request_id] = Flight(request)
        self._waiting.append(flight)
        self._send_waiting()

    def abort(self, request_ids: Iterable[str]) -> None:
        """The front end wants no more of these."""
        for request_id in request_ids:
            flight = self._flights.pop(request_id, None)
            if flight is None:
                continue
            if flight.port is None:
                self._waiting.remove(flight)
            self._detach(flight)
        self._send_waiting()

    def take(self, port: EnginePort, outputs: Any) -> None:
        """EngineCoreOutputs of an engine: what is still wanted, by the front end's names."""
        kept, cut = [], []
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
        self._resend(cut)

    def _take_one(self, flight: Flight, output: Any) -> None:
        output.request_id = flight.request_id
        flight.delivered.extend(output.new_token_ids)
        self.num_tokens += len(output.new_token_ids)
        port = flight.port
        if port is not None and self._on_trial.get(port) is flight:
            del self._on_trial[port]
        if output.finish_reason is not None:
            self._detach(flight, abort=False)
            del self._flights[flight.request_id]

    # ---- steps that these share ----

    def _resend(self, flights: Iterable[Flight]) -> None:
        """Put those that ran or waited elsewhere before all that wait, and send.

        An engine takes a request with delivered tokens before those that it has. So of these
        the oldest is sent last; of the others, first.
        """
        oldest_first = sorted(flights, key=lambda flight: float(flight.request.arrival_time))
        begun = [flight for flight in oldest_first if flight.delivered]
        fresh = [flight for flight in oldest_first if not flight.delivered]
        self._waiting.extendleft([*reversed(fresh), *begun])
        self._send_waiting()

    def _send_waiting(self) -> None:
        still_waiting: deque[Flight] = deque()
        while self._waiting:
            flight = self._waiting.popleft()
            port = self._choose(flight)
            if port is None:
                still_waiting.append(flight)
            else:
                self._send(flight, port)
        self._waiting = still_waiting

    def _choose(self, flight: Flight) -> EnginePort | None:
        suspect = flight.num_deaths >= _SUSPECT_DEATHS
        for port in self._ports:
            open_to_all = port.accepts and not port.gone and port not in self._ending
            if open_to_all and not (suspect and port in self._on_trial):
                return port
        return None

    def _send(self, flight: Flight, port: EnginePort) -> None:
        if flight.num_deaths >= _SUSPECT_DEATHS:
            self._on_trial[port] = flight
        flight.port = port
        flight.num_sent += 1
        flight.num_delivered_before = len(flight.delivered)
        self._by_wire_id[flight.wire_id] = flight
        port.add(flight.on_the_wire())

    def _detach(self, flight: Flight, *, abort: bool = True) -> None:
        """Take no more of it from where it runs, and have it aborted there if anybody listens."""
        port, flight.port = flight.port, None
        if port is None:
            return
        del self._by_wire_id[flight.wire_id]
        if self._on_trial.get(port) is flight:
            del self._on_trial[port]
        if abort and not port.gone:
            port.abort([flight.wire_id])

    def _fail(self, flight: Flight) -> None:
        """Answer it with an error: it must not take another engine with it."""
        message = (
            f"given up: {flight.num_deaths} engines died while they ran this request; "
            "the server's log says why"
        )
        _log.error("request %s %s", flight.request_id, message)
        del self._flights[flight.request_id]
        self._tell_failure(flight.request_id, message)
