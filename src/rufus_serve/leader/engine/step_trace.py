"""`StepTrace`: where the time of steps goes: summed always, a few written as Perfetto reads them.

A span costs a microsecond. Followers tell when they began a step by their own clock;
the offset to the leader's is taken from the exchange that took least, as NTP does.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rufus_serve.protocol.messages import StepReply

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Span:
    """Monotonic seconds of the leader's host; `track` is the leader's thread or a follower."""

    track: str
    name: str
    began: float
    ended: float
    step_id: int = -1


@dataclass(frozen=True)
class _Exchange:
    """One follower's part of a step."""

    reply: StepReply
    sent: float
    received: float

    @property
    def slack_s(self) -> float:
        """Time on the way, both ways together."""
        return self.received - self.sent - self.reply.compute_s

    @property
    def offset_s(self) -> float:
        """The follower's clock less the leader's, if both ways took the same."""
        ended = self.reply.began + self.reply.compute_s
        return ((self.reply.began - self.sent) + (ended - self.received)) / 2


class Part:
    """A part of a step, as a context manager: used by one thread, and not within itself."""

    __slots__ = ("_began", "_trace", "name", "spent_s", "track")

    def __init__(self, trace: "StepTrace", name: str, track: str) -> None:
        self._trace, self.name, self.track = trace, name, track
        self._began = self.spent_s = 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        ended = time.monotonic()
        self.spent_s += ended - self._began
        self._trace.took(self, self._began, ended)


class StepTrace:
    """Sums parts of steps, and records the next steps once told to; any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[str, Part] = {}
        self._left = 0
        self._path = Path()
        self._spans: list[_Span] = []
        self._exchanges: list[_Exchange] = []

    def start(self, num_steps: int, path: str) -> None:
        """Record `num_steps` steps, then write them to `path`."""
        with self._lock:
            self._spans, self._exchanges = [], []
            self._path, self._left = Path(path), num_steps

    def span(self, name: str, *, track: str = "steps") -> Part:
        """What happens within is the part `name` of a step, on the leader."""
        part = self._parts.get(name)
        if part is None:
            part = self._parts[name] = Part(self, name, track)
        return part

    def took(self, part: Part, began: float, ended: float) -> None:
        """Record a part that was done, if steps are being recorded."""
        if self._left:
            with self._lock:
                self._spans.append(_Span(part.track, part.name, began, ended))

    def spent_s(self) -> dict[str, float]:
        """Seconds by part since the process began."""
        return {name: part.spent_s for name, part in list(self._parts.items())}

    def step(self, replies: Sequence[StepReply], *, sent: float, received: float) -> None:
        """Record one step's exchange with the followers; the last one writes the file."""
        if not self._left:
            return
        with self._lock:
            self._exchanges += [_Exchange(reply, sent, received) for reply in replies]
            self._left -= 1
            done = self._left == 0
        if done:
            # Not on the step thread, which would show up in the steps that follow.
            threading.Thread(target=self._write, name="trace", daemon=True).start()

    def _write(self) -> None:
        with self._lock:
            spans = self._spans + [s for e in self._exchanges for s in self._follower_spans(e)]
        aside = self._path.with_name(self._path.name + ".part")
        try:
            aside.write_text(json.dumps({"traceEvents": list(_events(spans))}))
            aside.replace(self._path)
        except OSError as error:
            _log.warning("the trace cannot be written to %s: %s", self._path, error.strerror)

    def _follower_spans(self, exchange: _Exchange) -> list[_Span]:
        reply = exchange.reply
        of_peer = [e for e in self._exchanges if e.reply.node_rank == reply.node_rank]
        offset_s = min(of_peer, key=lambda each: each.slack_s).offset_s
        track, step_id = f"follower {reply.node_rank}", reply.step_id
        began = reply.began - offset_s
        ended = began + reply.compute_s
        return [
            _Span(track, "receive", exchange.sent, began, step_id),
            _Span(track, "execute", began, ended, step_id),
            # When each wait was is not told; together they are drawn at the end.
            _Span(track, "collective", ended - reply.wait_s, ended, step_id),
            _Span(track, "reply", ended, exchange.received, step_id),
        ]


def _events(spans: Sequence[_Span]) -> Iterator[dict[str, Any]]:
    tracks = {track: number for number, track in enumerate(dict.fromkeys(s.track for s in spans))}
    first = min((span.began for span in spans), default=0.0)
    for track, number in tracks.items():
        name = {"name": track}
        yield {"ph": "M", "name": "thread_name", "pid": os.getpid(), "tid": number, "args": name}
    for span in spans:
        yield {
            "ph": "X",
            "name": span.name,
            "pid": os.getpid(),
            "tid": tracks[span.track],
            "ts": round(1e6 * (span.began - first), 1),
            "dur": round(1e6 * max(0.0, span.ended - span.began), 1),
            "args": {"step_id": span.step_id} if span.step_id >= 0 else {},
        }
