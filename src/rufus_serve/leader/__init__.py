"""The leader process: vLLM's server and scheduler over thin followers."""
