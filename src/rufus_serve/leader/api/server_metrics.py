"""What the API process measures itself or hears of engines and supervisor, for `/metrics`."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from http import HTTPStatus

from prometheus_client.registry import Collector

from rufus_serve.leader.api.call import Call
from rufus_serve.leader.api.routes import label_of
from rufus_serve.leader.api.status_metrics import StatusMetrics
from rufus_serve.leader.step_counts import STEP_BOUNDS_S, Durations, StepCounts
from rufus_serve.metrics import Family, Values, family, histogram
from rufus_serve.protocol.messages import Status

_HUNG_UP = 499


class ServerMetrics(Collector):
    """Takes no lock, so that a process forked meanwhile inherits none."""

    def __init__(self, num_open: Callable[[], int]) -> None:
        """`num_open`: sequences that are open now."""
        self._num_open = num_open
        self._groups = StatusMetrics()
        self.engines: dict[int, StepCounts] = {}
        """What the engine of each group has counted so far."""
        self.moves: Mapping[int, Durations] = {}
        """How long requests that left each group waited for their next token."""
        self._requests: Counter[tuple[str, ...]] = Counter()
        self._refusals: Counter[tuple[str, ...]] = Counter()

    def took_status(self, status: Status) -> None:
        """What the supervisor says now."""
        self._groups.take(status)

    def took_counts(self, group: int, counts: StepCounts) -> None:
        """What the engine of `group` has counted so far."""
        self.engines[group] = counts

    def answered(self, call: Call) -> None:
        """One request is done with."""
        status = str(call.status or _HUNG_UP)
        self._requests[label_of(call.path), status, call.key.id] += 1
        if call.status >= HTTPStatus.BAD_REQUEST:
            self._refusals[call.refusal or _word_of(call.status), call.key.id] += 1

    def collect(self) -> Iterator[Family]:
        """All families, also those without a sample yet."""
        yield from self._groups.families()
        engines = list(self.engines.items())
        yield histogram(
            "rufus_step_seconds",
            STEP_BOUNDS_S,
            [
                ((str(group), phase), times.buckets, times.sum_s)
                for group, counts in engines
                for phase, times in counts.steps.items()
            ],
        )
        yield family("rufus_step_part_seconds_total", _by_name(engines, lambda c: c.parts_s))
        yield family("rufus_bucket_used_total", _filled(engines, "used"))
        yield family("rufus_bucket_computed_total", _filled(engines, "computed"))
        for metric, name in _WHOLE.items():
            yield family(metric, {(str(group),): getattr(c, name) for group, c in engines})
        yield histogram(
            "rufus_move_seconds",
            STEP_BOUNDS_S,
            [((str(group),), times.buckets, times.sum_s) for group, times in self.moves.items()],
        )
        yield family("rufus_http_requests_total", dict(self._requests))
        yield family("rufus_refusals_total", dict(self._refusals))
        yield family("rufus_open_sequences", {(): self._num_open()})


_WHOLE = {
    "rufus_step_sent_bytes_total": "sent_bytes",
    "rufus_step_received_bytes_total": "received_bytes",
    "rufus_rows_in_full_total": "rows_in_full",
    "rufus_stale_replies_total": "stale_replies",
}


_Engines = Sequence[tuple[int, StepCounts]]


def _word_of(status: int) -> str:
    """HTTP's own words for it, as a label's value."""
    return HTTPStatus(status).phrase.lower().replace(" ", "_")


def _filled(engines: _Engines, what: str) -> Values:
    return _by_name(engines, lambda c: {p: getattr(each, what) for p, each in c.filled.items()})


def _by_name(engines: _Engines, read: Callable[[StepCounts], dict[str, float]]) -> Values:
    return {
        (str(group), name): value
        for group, counts in engines
        for name, value in read(counts).items()
    }
