"""How far the engine's steps are: what it reports to the supervisor with every heartbeat."""

import threading
import time

from rufus_serve.leader.engine.shared import Engine
from rufus_serve.leader.engine.step_pace import StepPace
from rufus_serve.protocol.messages import LeaderProgress


class Progress:
    """Counts steps for the heartbeat; any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._started: dict[int, float] = {}
        self._done = 0
        self._lock = threading.Lock()
        self.epoch = -1
        self.pace = StepPace()

    def begin(self, step_id: int) -> None:
        """A step was sent."""
        with self._lock:
            self._started[step_id] = time.monotonic()

    def end(self, step_id: int) -> None:
        """A step was answered."""
        with self._lock:
            self._started.pop(step_id, None)
            self._done += 1

    def forget(self) -> None:
        """Steps in flight will never be answered."""
        with self._lock:
            self._started.clear()

    def report(self) -> LeaderProgress:
        """The heartbeat as of now."""
        running, waiting = self._engine.request_counts()
        with self._lock:
            oldest = min(self._started.values(), default=None)
            in_flight, done = len(self._started), self._done
        return LeaderProgress(
            epoch=self.epoch,
            steps_done=done,
            steps_in_flight=in_flight,
            oldest_step_s=0.0 if oldest is None else time.monotonic() - oldest,
            num_running=running,
            num_waiting=waiting,
            follower_step_s=self.pace.take(),
        )
