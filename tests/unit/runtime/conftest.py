"""Puts this folder on the import path, for `neuron_sized`."""
