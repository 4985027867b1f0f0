"""Engines that a test steps by hand: what they are sent and what they answer takes its time."""

import random
from collections.abc import Sequence
from types import SimpleNamespace

from rufus_serve.leader.api.fleet.dispatcher import Dispatcher
from rufus_serve.leader.api.fleet.flight import Capacity
from rufus_serve.leader.delivered import take_delivered, with_delivered

ROOMY = Capacity(sequences=1000, tokens=1_000_000)


def request(
    name: str,
    prompt: Sequence[int] = (1, 2),
    *,
    max_tokens: int = 8,
    at: float = 0.0,
    session: str | None = None,
) -> SimpleNamespace:
    """As vLLM's EngineCoreRequest."""
    return SimpleNamespace(
        request_id=name,
        prompt_token_ids=list(prompt),
        sampling_params=SimpleNamespace(max_tokens=max_tokens, extra_args=None),
        arrival_time=at,
        client_index=0,
        lora_request=None,
        cache_salt=None,
        session_id=session,
    )


def outputs(*each: SimpleNamespace, stats: object = None) -> SimpleNamespace:
    """As vLLM's EngineCoreOutputs."""
    return SimpleNamespace(outputs=list(each), scheduler_stats=stats, engine_index=0)


def output(wire_id: str, tokens: Sequence[int], reason: str | None = None) -> SimpleNamespace:
    """As vLLM's EngineCoreOutput, whose reasons become such words by `str`."""
    return SimpleNamespace(request_id=wire_id, new_token_ids=list(tokens), finish_reason=reason)


def forged(name: str, tokens: Sequence[int]) -> SimpleNamespace:
    """A request whose client claims that `tokens` were delivered."""
    plain = request(name)
    plain.sampling_params = with_delivered(plain.sampling_params, tokens)
    return plain


def next_token(context: Sequence[int]) -> int:
    return hash(tuple(context)) % 1000


def continuation(prompt: Sequence[int], count: int) -> list[int]:
    context = list(prompt)
    for _ in range(count):
        context.append(next_token(context))
    return context[len(prompt) :]


class FakeEngine:
    """An `EnginePort` whose engine takes messages and runs steps when told to."""

    def __init__(self, group: int = 0, *, capacity: Capacity = ROOMY) -> None:
        self.group, self.accepts, self.gone = group, True, False
        self.capacity = capacity
        self._inbox: list[SimpleNamespace | list[str]] = []
        self._outbox: list[SimpleNamespace] = []
        self.running: dict[str, tuple[list[int], int, int]] = {}
        """Context, tokens so far, most tokens; by wire id, those to go first in front."""

    def add(self, request: SimpleNamespace) -> None:
        assert not self.gone, "sent to a dead engine"
        self._inbox.append(request)

    def abort(self, wire_ids: Sequence[str]) -> None:
        assert not self.gone, "sent to a dead engine"
        self._inbox.append(list(wire_ids))

    def kill(self) -> None:
        self.gone, self.accepts = True, False

    def receive_one(self) -> None:
        if not self._inbox:
            return
        message = self._inbox.pop(0)
        if isinstance(message, list):
            for wire_id in message:
                self.running.pop(wire_id, None)
            return
        assert message.request_id not in self.running, "duplicate request id"
        delivered = take_delivered(message.sampling_params)
        context = [*message.prompt_token_ids, *delivered]
        entry = {message.request_id: (context, len(delivered), message.sampling_params.max_tokens)}
        # As our scheduler has it: those that were begun go before those that wait.
        self.running = entry | self.running if delivered else self.running | entry

    def step(self, *, only: random.Random | None = None) -> None:
        """A token for each request, or for a random choice of them."""
        found = []
        for wire_id, (context, before, limit) in list(self.running.items()):
            if only is not None and only.random() < 0.3:
                continue
            context.append(next_token(context))
            self.running[wire_id] = context, before + 1, limit
            reason = "length" if before + 1 >= limit else None
            if reason:
                del self.running[wire_id]
            found.append(output(wire_id, context[-1:], reason))
        if found:
            self._outbox.append(outputs(*found))

    def end_by_itself(self) -> None:
        """As on SIGTERM: everything is aborted, and new requests are refused."""
        self._outbox.append(outputs(*(output(wire_id, [], "abort") for wire_id in self.running)))
        self.running.clear()

    def deliver_one(self, dispatcher: Dispatcher) -> None:
        if self._outbox:
            dispatcher.take(self, self._outbox.pop(0))

    def settle(self, dispatcher: Dispatcher) -> None:
        """Take in and give out all that is under way."""
        while self._inbox:
            self.receive_one()
        while self._outbox:
            self.deliver_one(dispatcher)

    def run(self, dispatcher: Dispatcher, steps: int = 1) -> None:
        for _ in range(steps):
            self.settle(dispatcher)
            self.step()
            self.settle(dispatcher)


class FrontEnd:
    """Collects what a dispatcher delivers."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.ended: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self.stats: list[tuple[int, object]] = []
        """Engine index and statistics of each message that has some."""
        self.now = 0.0
        self.dispatcher = Dispatcher(self.take, self.fail, clock=lambda: self.now)

    def take(self, message: SimpleNamespace) -> None:
        if message.scheduler_stats is not None:
            self.stats.append((message.engine_index, message.scheduler_stats))
        for each in message.outputs:
            assert each.request_id not in self.ended, "an output after the last"
            self.tokens.setdefault(each.request_id, []).extend(each.new_token_ids)
            if each.finish_reason is not None:
                self.ended[each.request_id] = each.finish_reason

    def fail(self, name: str, message: str) -> None:
        assert name not in self.ended, "an error after the last output"
        self.ended[name], self.errors[name] = "error", message
