"""The one list of settings; imports no torch, ray or vllm."""

from rufus_serve.config.schema import ServeConfig
from rufus_serve.config.sources import Origin, Resolved, resolve

__all__ = ["Origin", "Resolved", "ServeConfig", "resolve"]
