"""The Neuron runtime: NxD Inference 0.8 behind the `Runtime` protocol.

Read in this order: `runtime`, `layouts` beside this folder, `neuron_config`, `cpu_mode`. The
SDK is imported by `application` and `cpu_mode` alone, when a model is loaded.
"""

from rufus_serve.runtime.neuron.runtime import NeuronRuntime

__all__ = ["NeuronRuntime"]
