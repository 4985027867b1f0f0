"""The one list of settings; imports no torch, ray or vllm."""

from rufus_serve.config.schema import ServeConfig

__all__ = ["ServeConfig"]
