"""Runtime `cpu` with `cpu.strict_neuron`: the Neuron runtime's calls on a device made of torch.

Steps take the way they take to a Neuron device: the same layouts turn them into the same calls.
What receives the calls keeps the device's rules, and refuses loudly where a device would hang or
answer wrongly. Not a simulator: timing and rounding are the CPU's own.
"""

from rufus_serve.runtime.cpu.strict.runtime import StrictCpuRuntime

__all__ = ["StrictCpuRuntime"]
