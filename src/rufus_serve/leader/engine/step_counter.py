"""How far the engine's steps are: what it reports to the supervisor with every heartbeat."""

import threading

from rufus_serve.leader.engine.shared import Engine
from rufus_serve.leader.engine.step_pace import StepPace
from rufus_serve.leader.engine.step_tally import StepTally
from rufus_serve.protocol.messages import LeaderProgress


class StepCounter:
    """Counts steps for the heartbeat; any thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._in_flight: set[int] = set()
        self._done = self._turns = 0
        self._lock = threading.Lock()
        self.pace = StepPace()
        self.trace = engine.trace
        self.tally = StepTally(engine.trace)

    def begin(self, step_id: int) -> None:
        """A step was sent."""
        with self._lock:
            self._in_flight.add(step_id)

    def end(self, step_id: int) -> None:
        """A step was answered."""
        with self._lock:
            self._in_flight.discard(step_id)
            self._done += 1

    def forget(self) -> None:
        """Steps in flight will never be answered."""
        with self._lock:
            self._in_flight.clear()

    def turned(self) -> None:
        """EngineCore's main loop runs, though it may have no step to do."""
        with self._lock:
            self._turns += 1

    def report(self) -> LeaderProgress:
        """The heartbeat as of now."""
        running, _ = self._engine.request_counts()
        with self._lock:
            in_flight, done, turns = len(self._in_flight), self._done, self._turns
        return LeaderProgress(
            steps_done=done,
            steps_in_flight=in_flight,
            num_running=running,
            turns=turns,
            follower_step_s=self.pace.take(),
        )
