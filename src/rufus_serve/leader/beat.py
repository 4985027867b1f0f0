"""What the API process asks an engine's main loop: methods of vLLM's `collective_rpc`.

They go through the queue that requests go through.
"""

BEAT = "beat"
"""Shows that the loop turns; returns `StepCounts` as plain data."""
HAS_PROMPT_LOGPROBS = "has_prompt_logprobs"
"""Returns `RuntimeInfo.prompt_logprobs`."""
CHOOSES_TOKENS = "chooses_tokens"
"""Returns whether there are `RuntimeInfo.chosen_tokens`."""
