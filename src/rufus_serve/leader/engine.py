"""What executor and scheduler share inside the engine process."""

from collections.abc import Callable
from dataclasses import dataclass, field

from rufus_serve.leader.epoch_gate import EpochGate


def _no_requests() -> tuple[int, int]:
    return 0, 0


@dataclass
class Engine:
    """Made by the executor, found by the scheduler through vLLM's configuration object."""

    gate: EpochGate = field(default_factory=EpochGate)
    prefill_tokens_per_step: int = 0
    """New prompt tokens scheduled per step, beside the running requests' one each."""
    max_prefills_per_step: int = 0
    """New prompts admitted per step beside running requests; 0 leaves it to vLLM."""
    request_counts: Callable[[], tuple[int, int]] = _no_requests
    """Running and waiting requests."""
