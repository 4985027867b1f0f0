"""The engine process: vLLM's scheduler over followers, step by step, and sampling."""
