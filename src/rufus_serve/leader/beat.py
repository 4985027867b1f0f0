"""What the API process asks the engine's main loop, to see that it turns and what it counted."""

BEAT = "beat"
"""Method of vLLM's `collective_rpc`; it goes through the queue that requests go through.

It returns `StepCounts` as plain data.
"""
HAS_PROMPT_LOGPROBS = "has_prompt_logprobs"
"""Likewise, asked once: `RuntimeInfo.prompt_logprobs`."""
