"""What executor and scheduler share inside the engine process."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rufus_serve.leader.engine.epoch_gate import EpochGate
from rufus_serve.leader.engine.step_trace import StepTrace
from rufus_serve.leader.engine.suspects import Suspects


def _no_requests() -> tuple[int, int]:
    return 0, 0


@dataclass
class Engine:
    """Made by the executor, found by the scheduler through vLLM's configuration object."""

    gate: EpochGate = field(default_factory=EpochGate)
    suspects: Suspects = field(default_factory=Suspects)
    trace: StepTrace = field(default_factory=StepTrace)
    prefill_tokens_per_step: int = 0
    """New prompt tokens scheduled per step, beside those of the running requests."""
    tokens_per_row: int = 1
    """Most tokens of a running request in a step, drafts included."""
    max_prefills_per_step: int = 0
    """New prompts admitted per step beside running requests; 0 leaves it to vLLM."""
    request_counts: Callable[[], tuple[int, int]] = _no_requests
    """Running and waiting requests."""

    def token_limit(self, running: Sequence[Any]) -> int:
        """Tokens that one step may hold beside or with the `running` requests of vLLM."""
        return self.prefill_tokens_per_step + len(running) * self.tokens_per_row

    def request_limit(self, running: Sequence[Any]) -> int:
        """Requests that may run in a step; a prompt that is not through is one of the prefills."""
        if not self.max_prefills_per_step or not running:
            return sys.maxsize
        unfinished = sum(1 for each in running if each.num_computed_tokens < each.num_prompt_tokens)
        return len(running) + max(0, self.max_prefills_per_step - unfinished)
