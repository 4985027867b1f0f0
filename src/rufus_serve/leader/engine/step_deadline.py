"""How long a step may take before its followers count as hung."""

from rufus_serve.config.step_floor import prefill_floor_s
from rufus_serve.protocol.messages import Phase, StepRequest

_PATIENCE = 20.0
_WEIGHT = 0.1
_CEILING_S = 600.0


class StepDeadline:
    """Learns step times, and gives each step a multiple of what it should take.

    Seconds per decode step and per prefilled token are kept as moving averages that rise at
    once and fall slowly, so that one fast step does not make the next deadline tight.
    """

    def __init__(self, floor_s: float) -> None:
        self._floor_s = floor_s
        self._decode_s = 0.0
        self._prefill_token_s = 0.0

    def seconds_for(self, step: StepRequest) -> float:
        """Deadline of `step`, from the moment it is alone on the device."""
        if step.phase is Phase.PREFILL:
            expected = self._prefill_token_s * step.num_new_tokens
            floor = prefill_floor_s(self._floor_s, step.num_new_tokens)
        else:
            expected, floor = self._decode_s, self._floor_s
        return min(max(floor, _PATIENCE * expected), max(floor, _CEILING_S))

    def observe(self, step: StepRequest, took_s: float) -> None:
        """Learn from a step that was answered."""
        if step.phase is Phase.PREFILL:
            seconds = took_s / max(step.num_new_tokens, 64)
            self._prefill_token_s = _blend(self._prefill_token_s, seconds)
        else:
            self._decode_s = _blend(self._decode_s, took_s)


def _blend(average: float, value: float) -> float:
    return max(value, average + _WEIGHT * (value - average))
