"""The shortest deadline of a step, which leader and followers agree on."""

_FULL_FLOOR_TOKENS = 512


def prefill_floor_s(step_floor_s: float, num_tokens: int) -> float:
    """Of a prefill of `num_tokens`: `timeouts.step_floor_s`, and more for long ones."""
    return step_floor_s * max(1.0, num_tokens / _FULL_FLOOR_TOKENS)
