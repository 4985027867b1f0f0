"""A follower process: join, load, warm up, serve steps, drain. Imports no vllm."""

from rufus_serve.follower.offer import join

__all__ = ["join"]
