"""`SimulatedEngine`: which requests share a step, as vLLM's scheduler and ours decide it.

Running requests come first, in the order of their admission, then waiting ones while there is
room; a step's decodes and its prefills are calls of their own, and its tokens come when all of
them are done. Pure: no clock, no random numbers.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rufus_serve.plan.traffic.batching import Batching
from rufus_serve.plan.traffic.demand import Arrival
from rufus_serve.plan.traffic.step_times import StepTimes
from rufus_serve.routing import Beginnings, Wanted


@dataclass(eq=False)
class Job:
    """A request on its way; moments in seconds."""

    name: str
    arrival: Arrival
    delivered: int = 0
    first_s: float = 0.0
    last_s: float = 0.0
    longest_pause_s: float = 0.0
    num_moves: int = 0
    num_cached: int = 0
    """Tokens of the prompt that a cache held."""
    target: int = 0
    """Tokens to prefill: the prompt, and what was delivered before it came to this engine."""
    computed: int = 0
    """Tokens in the KV cache once all planned steps are done."""
    planned: int = 0
    """Output tokens, those of planned steps included."""
    num_blocks: int = 0
    num_entries: int = 0
    """Times that it came to an engine or was preempted: older steps bring it nothing."""

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far."""
        return len(self.arrival.tokens) + self.delivered

    @property
    def is_done(self) -> bool:
        """All output was delivered."""
        return self.delivered >= self.arrival.num_output

    def wanted(self) -> Wanted:
        """For the router."""
        tokens = self.arrival.tokens
        if self.delivered:
            tokens = [*tokens, *[-1] * self.delivered]
        left = self.arrival.num_output - self.delivered
        return Wanted(name=self.name, tokens=tokens, most_left=left)

    def take_token(self, now_s: float) -> None:
        """A token came."""
        if self.delivered:
            self.longest_pause_s = max(self.longest_pause_s, now_s - self.last_s)
        else:
            self.first_s = now_s
        self.delivered += 1
        self.last_s = now_s


@dataclass(frozen=True)
class PlannedStep:
    """One scheduler step."""

    jobs: tuple[tuple[Job, int], ...]
    """Those that get a token from it, and their `num_entries` when it was planned."""
    durations_s: tuple[float, ...]
    """By number of groups that are at work meanwhile."""


@dataclass
class SimulatedEngine:
    """The scheduler of one group."""

    batching: Batching
    times: tuple[StepTimes, ...]
    """By number of groups at work, the last one for more."""
    between_s: float = 0.0
    waiting: deque[Job] = field(default_factory=deque)
    running: list[Job] = field(default_factory=list)
    num_blocks_used: int = 0
    num_preemptions: int = 0

    def __post_init__(self) -> None:
        self._beginnings = Beginnings(self.batching.kv_tokens)

    @property
    def jobs(self) -> list[Job]:
        """All that it has."""
        return [*self.running, *self.waiting]

    def add(self, job: Job) -> None:
        """Queue `job`; what was begun elsewhere goes before what waits."""
        _enter(job)
        if job.delivered:
            self.waiting.appendleft(job)
        else:
            self.waiting.append(job)

    def clear(self) -> list[Job]:
        """Everything is lost: its jobs, to be sent elsewhere."""
        jobs = self.jobs
        for job in jobs:
            job.num_entries += 1
        self.running, self.waiting, self.num_blocks_used = [], deque(), 0
        self._beginnings.clear()
        return jobs

    def remove(self, job: Job) -> None:
        """A waiting job goes elsewhere."""
        self.waiting.remove(job)

    def schedule(self) -> PlannedStep | None:
        """Plan a step; None if there is nothing to compute."""
        rules = self.batching
        budget = rules.prefill_tokens_per_step + len(self.running)
        limit = self._request_limit()
        prefills: list[tuple[Job, int, int]] = []
        decodes: list[Job] = []
        preempted = self.num_preemptions
        for job in list(self.running):
            if job not in self.running or job.planned >= job.arrival.num_output:
                continue
            new = min(budget, max(1, job.target - job.computed))
            if not new or not self._grow(job, job.computed + new):
                break
            self._take(job, new, prefills, decodes)
            budget -= new
        if self.num_preemptions == preempted:
            for job, new in self._admit(budget, limit):
                self._take(job, new, prefills, decodes)
        if not prefills and not decodes:
            return None
        brings = [*decodes, *(job for job, start, new in prefills if start + new == job.target)]
        jobs = tuple((job, job.num_entries) for job in brings)
        return PlannedStep(jobs, self._durations_s(prefills, decodes))

    def finish(self, step: PlannedStep, now_s: float) -> list[Job]:
        """Deliver a step's tokens; those that belong to no one here any more are dropped."""
        came = [job for job, entry in step.jobs if job.num_entries == entry]
        for job in came:
            job.take_token(now_s)
            if job.is_done:
                self._end(job)
        return came

    def _request_limit(self) -> int:
        most = self.batching.max_num_seqs
        prefills = self.batching.max_prefills_per_step
        if not prefills or not self.running:
            return most
        unfinished = sum(job.computed < job.target for job in self.running)
        return min(most, len(self.running) + max(0, prefills - unfinished))

    def _admit(self, budget: int, limit: int) -> Iterator[tuple[Job, int]]:
        rules = self.batching
        while self.waiting and budget > 0 and len(self.running) < limit:
            job = self.waiting[0]
            cached = self._cached(job)
            new = job.target - cached
            if (new > budget and not rules.segmented_prefill) or not self._fits(job.target):
                return
            self.waiting.popleft()
            job.num_cached, job.computed = cached, cached
            self._grow(job, job.target)
            self.running.append(job)
            new = min(new, budget)
            budget -= new
            yield job, new

    def _take(
        self, job: Job, new: int, prefills: list[tuple[Job, int, int]], decodes: list[Job]
    ) -> None:
        if job.computed < job.target:
            prefills.append((job, job.computed, new))
        else:
            decodes.append(job)
        job.computed += new
        if job.computed >= job.target:
            job.planned += 1

    def _cached(self, job: Job) -> int:
        if not self.batching.prefix_caching:
            return 0
        # The last token is computed in any case: its logits are wanted.
        held = self._beginnings.cached_tokens(job.wanted().keys())
        return min(held, (job.target - 1) // self.batching.block_size * self.batching.block_size)

    def _fits(self, tokens: int) -> bool:
        free = self.batching.num_blocks - self.num_blocks_used
        return self.batching.blocks(tokens) <= free

    def _grow(self, job: Job, tokens: int) -> bool:
        """Have blocks for `tokens`, if need be the newest job's; False if that is `job`."""
        more = self.batching.blocks(tokens) - job.num_blocks
        while more > self.batching.num_blocks - self.num_blocks_used:
            newest = self.running[-1]
            self._preempt(newest)
            if newest is job:
                return False
        job.num_blocks += max(0, more)
        self.num_blocks_used += max(0, more)
        return True

    def _preempt(self, job: Job) -> None:
        self.num_preemptions += 1
        self.running.remove(job)
        self.num_blocks_used -= job.num_blocks
        _enter(job)
        self.waiting.appendleft(job)

    def _end(self, job: Job) -> None:
        self.running.remove(job)
        self.num_blocks_used -= job.num_blocks
        if self.batching.prefix_caching:
            self._beginnings.note(job.wanted().keys())

    def _durations_s(
        self, prefills: Sequence[tuple[Job, int, int]], decodes: Sequence[Job]
    ) -> tuple[float, ...]:
        contexts = [job.computed for job in decodes]
        parts = [part for job, start, new in prefills for part in self._parts(job, start, new)]
        room = self.batching.largest_prefill if self.batching.batched_prefill else 0
        calls = list(_merged(parts, room))
        return tuple(
            _calls_ms(times, contexts, calls) / 1e3 + self.between_s for times in self.times
        )

    def _parts(self, job: Job, start: int, new: int) -> Iterator[tuple[int, int, bool]]:
        """Tokens, computed ones before them, and whether their logits are wanted, of each call."""
        size = self.batching.largest_prefill
        for first in range(start, start + new, size):
            end = min(first + size, start + new)
            yield end - first, first, end == job.target


def _merged(parts: Sequence[tuple[int, int, bool]], room: int) -> Iterator[tuple[int, int]]:
    """Calls for `parts`: those that want logits share one of at most `room` tokens."""
    shared, computed = 0, 0
    for tokens, before, is_last in parts:
        may_share = is_last and room
        if shared and (not may_share or shared + tokens > room):
            yield shared, computed
            shared, computed = 0, 0
        if may_share:
            shared, computed = shared + tokens, max(computed, before)
        else:
            yield tokens, before
    if shared:
        yield shared, computed


def _calls_ms(
    times: StepTimes, contexts: Sequence[int], prefills: Sequence[tuple[int, int]]
) -> float:
    spent = times.decode_ms(contexts) if contexts else 0.0
    return spent + sum(times.prefill_ms(tokens, computed) for tokens, computed in prefills)


def _enter(job: Job) -> None:
    """Nothing of `job` is computed here."""
    job.target, job.computed, job.num_blocks = job.num_tokens, 0, 0
    job.planned = job.delivered
    job.num_entries += 1
