"""How a Neuron device wants its calls shaped: buckets, KV layouts. No SDK is needed here.

Both the Neuron runtime and the CPU runtime under `cpu.strict_neuron` keep these rules.
"""
