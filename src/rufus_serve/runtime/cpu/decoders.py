"""Which decoder a CPU follower runs: compiled kernels where they can, else plain torch."""

import functools
import logging
from dataclasses import dataclass
from typing import Protocol

import torch

from rufus_serve.config.schema import ServeConfig
from rufus_serve.kernels.huge_pages import Arena
from rufus_serve.kernels.library import KernelsUnavailable, Library, load_library
from rufus_serve.kernels.packing import PackedLinear
from rufus_serve.runtime.base import Progress
from rufus_serve.shard.decoder import AllReduce, Decoder, Readout
from rufus_serve.shard.fused_decoder import FusedDecoder, unsupported
from rufus_serve.shard.kv_cache import KvCache
from rufus_serve.shard.linear import Linear, LinearT, MakeLinear
from rufus_serve.shard.model_config import ModelConfig
from rufus_serve.shard.partition import Partition
from rufus_serve.shard.step_inputs import StepInputs
from rufus_serve.shard.tensor_source import TensorSource
from rufus_serve.shard.weights import WeightLoader

_LOGGER = logging.getLogger(__name__)

TORCH = "torch"
"""What `Loaded.kernels` says of the decoder in plain torch."""


class AnyDecoder(Protocol):
    """`Decoder` or `FusedDecoder`."""

    def run(self, step: StepInputs, cache: KvCache, *, all_reduce: AllReduce) -> Readout:
        """Run one step."""


@dataclass(frozen=True)
class Loaded:
    """A decoder with its weights."""

    decoder: AnyDecoder
    nbytes: int
    kernels: str
    """The instruction set of its kernels, or `TORCH`."""


class DecoderLoader:
    """Reads weights for the decoder that suits `config`, `model` and this CPU."""

    def __init__(
        self,
        config: ServeConfig,
        model: ModelConfig,
        partition: Partition,
        *,
        dtype: torch.dtype,
        num_positions: int,
    ) -> None:
        self._config = config
        self._model = model
        self._partition = partition
        self._dtype = dtype
        self._num_positions = num_positions

    def load(self, source: TensorSource, progress: Progress) -> Loaded:
        """Raises ModelError if a tensor is missing, of another shape or unreadable."""
        try:
            library = choose_library(self._config, self._model, self._dtype)
        except KernelsUnavailable as reason:
            _LOGGER.info("computing with torch: %s", reason)
            return self._plain(source, progress)
        _LOGGER.info("computing with %s kernels", library.name)
        return self._fused(library, source, progress)

    def _plain(self, source: TensorSource, progress: Progress) -> Loaded:
        make_linear = functools.partial(Linear, dtype=self._dtype)
        weights = self._loader(source, make_linear).load(progress)
        decoder = Decoder(
            self._model, self._partition, weights=weights, num_positions=self._num_positions
        )
        return Loaded(decoder, weights.nbytes, TORCH)

    def _fused(self, library: Library, source: TensorSource, progress: Progress) -> Loaded:
        make_linear = functools.partial(PackedLinear, arena=Arena())
        weights = self._loader(source, make_linear).load(progress)
        decoder = FusedDecoder(
            self._model,
            self._partition,
            weights=weights,
            num_positions=self._num_positions,
            library=library,
            num_threads=torch.get_num_threads(),
        )
        # A tied embedding is held as the output layer alone.
        held_twice = weights.embedding.nbytes if weights.is_tied else 0
        return Loaded(decoder, weights.nbytes - held_twice, library.name)

    def _loader(
        self, source: TensorSource, make_linear: MakeLinear[LinearT]
    ) -> WeightLoader[LinearT]:
        return WeightLoader(
            source,
            self._model,
            partition=self._partition,
            dtype=self._dtype,
            make_linear=make_linear,
            quantizes=self._config.weights == "int8",
        )


def choose_library(config: ServeConfig, model: ModelConfig, dtype: torch.dtype) -> Library:
    """The kernels to compute with. Raises KernelsUnavailable where torch must do."""
    if config.cpu.kernels == TORCH:
        raise KernelsUnavailable("cpu.kernels is torch")
    if dtype != torch.bfloat16:
        raise KernelsUnavailable(f"kernels are for bfloat16, not {dtype}")
    reason = unsupported(model)
    if reason:
        raise KernelsUnavailable(reason)
    return load_library()
