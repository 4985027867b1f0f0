"""The vLLM side: platform, scheduler, executor, sampling and API server; the only package that imports vllm."""
