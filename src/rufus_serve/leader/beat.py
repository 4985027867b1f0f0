"""What the API process asks the engine's main loop, to see that it turns."""

BEAT = "beat"
"""Method of vLLM's `collective_rpc`; it goes through the queue that requests go through."""
