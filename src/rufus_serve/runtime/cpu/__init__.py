"""The CPU runtime: a tensor-parallel decoder in plain torch."""

from rufus_serve.runtime.cpu.runtime import CpuRuntime

__all__ = ["CpuRuntime"]
