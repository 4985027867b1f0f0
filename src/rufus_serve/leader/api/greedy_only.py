"""What of a request cannot be had where followers choose tokens, greedily and all rows alike."""

from typing import Any

_GREEDY_BELOW = 1e-5
"""Temperature below which vLLM takes the likeliest token, whatever else truncates the draw."""
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_tokens": (0,),
    "logit_bias": (None, {}),
    "allowed_token_ids": (None,),
    "bad_words": (None, []),
    "structured_outputs": (None,),
    "logprobs": (None,),
    "logprob_token_ids": (None,),
    "thinking_token_budget": (None,),
}
"""Of vLLM's sampling parameters that change or tell logits, the values that ask for nothing.

A seed is not among them: a greedy text is the same with any.
"""


def needs_logits(sampling_params: Any) -> str:
    """The first of a request's parameters that needs logits; empty if none does."""
    if sampling_params.temperature >= _GREEDY_BELOW:
        return "temperature"
    asked = (
        name
        for name, harmless in _HARMLESS.items()
        if getattr(sampling_params, name) not in harmless
    )
    return next(asked, "")
