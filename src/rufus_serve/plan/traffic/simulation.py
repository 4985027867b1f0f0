"""`simulate`: requests through the router and some groups, by SimPy's clock.

A group that is lost does as ours do: what had begun goes on elsewhere if there is room at once,
what had not is sent elsewhere, and what found no place waits until the group is back.
"""

from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import simpy

from rufus_serve.plan.traffic.batching import Batching
from rufus_serve.plan.traffic.demand import Arrival
from rufus_serve.plan.traffic.engine import Job, PlannedStep, SimulatedEngine
from rufus_serve.plan.traffic.host import Host
from rufus_serve.plan.traffic.step_times import StepTimes
from rufus_serve.routing import Router


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """A node of `group` is lost, and the group with it."""

    group: int
    at_s: float
    recover_s: float


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Equal groups behind one endpoint."""

    num_groups: int
    batching: Batching
    times: StepTimes
    shared_times: tuple[StepTimes, ...] = ()
    """Those with 2, 3, ... groups at work, if all share one machine."""
    front_s: float = 0.0
    """What each request spends before and behind its group."""
    between_s: float = 0.0
    """From one step's end to the next one's beginning."""
    losses: tuple[Loss, ...] = ()


@dataclass
class Outcome:
    """What came of a simulation."""

    jobs: list[Job] = field(default_factory=list)
    """In the order of their ends."""
    end_s: float = 0.0
    busy_s: float = 0.0
    """Of all groups together."""
    tokens_by_second: dict[int, int] = field(default_factory=dict)
    num_preemptions: int = 0
    num_late: int = 0
    """First tokens beyond the limit."""
    given_up: bool = False
    """Whether it ended early, because too many were late."""


def simulate(
    fleet: Fleet, arrivals: Iterable[Arrival], *, ttft_limit_s: float = 0.0, most_late: int = 0
) -> Outcome:
    """Send `arrivals`, ascending in time, until all have ended.

    With a limit, it is given up once more than `most_late` first tokens came later than that.
    """
    return _Run(fleet, ttft_limit_s, most_late).go(arrivals)


class _Group:
    """One group's process."""

    def __init__(self, run: "_Run", index: int) -> None:
        fleet, self._run, self.index = run.fleet, run, index
        self.engine = SimulatedEngine(
            fleet.batching, (fleet.times, *fleet.shared_times), fleet.between_s
        )
        self.is_up = True
        self._ahead: deque[PlannedStep] = deque()
        self._wake = run.env.event()
        self._process = run.env.process(self._live())

    def add(self, job: Job) -> None:
        """Queue `job`."""
        self.engine.add(job)
        if not self._wake.triggered:
            self._wake.succeed()

    def lose(self, recover_s: float) -> None:
        """Its state is gone; it is back after `recover_s`."""
        self._process.interrupt(float(recover_s))

    def has_room(self, job: Job) -> bool:
        """Whether it would run `job` at once."""
        rules, there = self.engine.batching, self.engine.jobs
        num_tokens = job.num_tokens + sum(each.num_tokens for each in there)
        return len(there) < rules.max_num_seqs and num_tokens < rules.kv_tokens

    def _live(self) -> Generator[Any, Any, None]:
        while True:
            recover_s = yield from self._serve_until_lost()
            self.is_up = False
            self._ahead.clear()
            self._run.lost(self)
            yield self._run.env.timeout(recover_s)
            self.is_up = True
            self._run.place_waiting()

    def _serve_until_lost(self) -> Generator[Any, Any, float]:
        try:
            yield from self._serve()
        except simpy.Interrupt as lost:
            recover_s = lost.cause
        assert isinstance(recover_s, float)
        return recover_s

    def _serve(self) -> Generator[Any, Any, None]:
        env, run = self._run.env, self._run
        while True:
            if len(self._ahead) <= self.engine.batching.steps_ahead:
                step = self.engine.schedule()
                if step is not None:
                    self._ahead.append(step)
                    if len(self._ahead) <= self.engine.batching.steps_ahead:
                        continue
            if not self._ahead:
                self._wake = env.event()
                yield self._wake
                continue
            step = self._ahead.popleft()
            began = env.now
            yield from run.host.work(step.durations_s)
            run.outcome.busy_s += env.now - began
            run.came(self, self.engine.finish(step, env.now + run.fleet.front_s / 2))


class _Run:
    """The dispatcher's part, and the bookkeeping."""

    def __init__(self, fleet: Fleet, ttft_limit_s: float, most_late: int) -> None:
        self.fleet, self.env, self.outcome = fleet, simpy.Environment(), Outcome()
        self._limit_s, self._most_late = ttft_limit_s, most_late
        self.host = Host(self.env)
        self._router = Router()
        self._waiting: deque[Job] = deque()
        self._homes: dict[Job, int] = {}
        self._num_open, self._all_sent = 0, False
        self._done = self.env.event()
        self._groups = [_Group(self, index) for index in range(fleet.num_groups)]
        rules = fleet.batching
        for group in self._groups:
            cache_tokens = rules.kv_tokens if rules.prefix_caching else 0
            self._router.engine_came(group.index, cache_tokens=cache_tokens)

    def go(self, arrivals: Iterable[Arrival]) -> Outcome:
        """Run to the end."""
        self.env.process(self._send_all(arrivals))
        for loss in self.fleet.losses:
            self.env.process(self._lose(loss))
        self.env.run(self._done)
        self.outcome.end_s = self.env.now
        self.outcome.num_preemptions = sum(g.engine.num_preemptions for g in self._groups)
        return self.outcome

    def came(self, group: _Group, jobs: list[Job]) -> None:
        """Tokens of `jobs` came from `group`."""
        second, found = int(self.env.now), self.outcome
        found.tokens_by_second[second] = found.tokens_by_second.get(second, 0) + len(jobs)
        has_ended = False
        for job in jobs:
            if job.delivered == 1:
                late = self._limit_s and job.first_s - job.arrival.at_s > self._limit_s
                found.num_late += bool(late)
            self._router.began(job.name)
            if job.is_done:
                has_ended = True
                self._end(group, job)
        if self._most_late and found.num_late > self._most_late and not self._done.triggered:
            found.given_up = True
            self._done.succeed()
        if has_ended and self._waiting:
            self.place_waiting()

    def lost(self, group: _Group) -> None:
        """Its requests go on elsewhere, begun ones first, the oldest foremost."""
        self._router.forget(group.index)
        jobs = sorted(group.engine.clear(), key=lambda job: (not job.delivered, job.arrival.at_s))
        for job in jobs:
            self._router.left(job.name)
        self._waiting.extendleft(reversed(jobs))
        self.place_waiting()

    def place_waiting(self) -> None:
        """Send what waits where there is a place for it."""
        still = deque(job for job in self._waiting if not self._place(job))
        self._waiting = still

    def _place(self, job: Job) -> bool:
        home = self._homes.get(job, -1)
        groups = [
            group
            for group in self._groups
            if group.is_up and (not job.delivered or group.index == home or group.has_room(job))
        ]
        if not groups:
            return False
        wanted = job.wanted()
        keys = wanted.keys() if self.fleet.batching.prefix_caching else []
        chosen = min(groups, key=lambda group: self._router.cost(group.index, wanted, keys))
        job.num_moves += bool(job.delivered) and chosen.index != home
        self._homes[job] = chosen.index
        self._router.sent(chosen.index, wanted, keys)
        chosen.add(job)
        return True

    def _end(self, group: _Group, job: Job) -> None:
        self._router.left(job.name)
        self._router.ended(group.index, job.wanted(), num_output=job.delivered)
        del self._homes[job]
        self.outcome.jobs.append(job)
        self._num_open -= 1
        if self._all_sent and not self._num_open and not self._done.triggered:
            self._done.succeed()

    def _send_all(self, arrivals: Iterable[Arrival]) -> Generator[Any, Any, None]:
        for number, arrival in enumerate(arrivals):
            due = arrival.at_s + self.fleet.front_s / 2
            yield self.env.timeout(max(0.0, due - self.env.now))
            self._num_open += 1
            job = Job(str(number), arrival)
            if not self._place(job):
                self._waiting.append(job)
        self._all_sent = True
        if not self._num_open and not self._done.triggered:
            self._done.succeed()

    def _lose(self, loss: Loss) -> Generator[Any, Any, None]:
        yield self.env.timeout(loss.at_s)
        group = self._groups[loss.group]
        if group.is_up:
            group.lose(loss.recover_s)
