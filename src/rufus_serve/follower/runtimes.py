"""Chooses the runtime; each is imported only where it is used."""

import importlib

from rufus_serve.artifacts.identity import Identity
from rufus_serve.config import ServeConfig
from rufus_serve.imports import imports_that_stay
from rufus_serve.runtime.base import Runtime


def import_runtime(config: ServeConfig) -> None:
    """Import what `make_runtime` needs, which takes seconds; a stand-by has done so in advance."""
    module = "neuron" if config.runtime == "neuron" else "cpu"
    with imports_that_stay():
        importlib.import_module(f"rufus_serve.runtime.{module}")


def identity_of(config: ServeConfig) -> Identity:
    """What artifacts of `config` depend on."""
    if config.runtime == "neuron":
        from rufus_serve.runtime.neuron.compiling import identity

        return identity(config)
    from rufus_serve.runtime.cpu.weight_source import shard_identity

    return shard_identity(config)


def make_runtime(
    config: ServeConfig, node_rank: int, *, group: int, num_followers_on_host: int
) -> Runtime:
    """The runtime that `config.runtime` names, for the shard of `node_rank` of `group`."""
    if config.runtime == "neuron":
        from rufus_serve.runtime.neuron import NeuronRuntime

        return NeuronRuntime(
            config, node_rank, group=group, num_followers_on_host=num_followers_on_host
        )
    if config.cpu.strict_neuron:
        from rufus_serve.runtime.cpu.strict import StrictCpuRuntime

        return StrictCpuRuntime(config, node_rank, num_followers_on_host=num_followers_on_host)
    from rufus_serve.runtime.cpu import CpuRuntime

    return CpuRuntime(config, node_rank, num_followers_on_host=num_followers_on_host)
