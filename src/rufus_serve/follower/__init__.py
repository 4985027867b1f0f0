"""A follower process: join, load, warm up, serve steps, drain. Imports no vllm."""
