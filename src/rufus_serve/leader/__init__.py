"""The vLLM side: platform, scheduler, executor, sampling, API server. Only here is vllm imported."""
