"""`FusedDecoder`: a `Decoder` in bfloat16 whose layers are two calls of compiled kernels each.

The residual stream, rotation, and what lies between a projection and the next rounding are
float32. A row's result does not depend on the other rows of its step.

Shape legend: T new tokens, S sequences, W blocks per sequence, M hidden size, V vocabulary share.
"""

import ctypes
import functools

import torch
import torch.nn.functional as F  # noqa: N812 - the customary name

from rufus_serve.errors import RuntimeStepError
from rufus_serve.kernels import structs
from rufus_serve.kernels.library import Library
from rufus_serve.kernels.packing import PackedLinear
from rufus_serve.kernels.structs import address_of
from rufus_serve.shard.decoder import AllReduce, Readout
from rufus_serve.shard.kv_cache import KvCache
from rufus_serve.shard.model_config import ModelConfig
from rufus_serve.shard.partition import Partition
from rufus_serve.shard.rope import cosines_and_sines
from rufus_serve.shard.step_inputs import StepInputs
from rufus_serve.shard.weights import DecoderWeights, LayerWeights

_FAULTS = {
    1: "its sequences do not make up its tokens",
    2: "a position lies outside of its row's blocks or of the model's positions",
    3: "a slot lies outside of the KV cache",
    4: "a block lies outside of the KV cache",
}
"""What `check_step` answers."""

_HEAD_SIZE_UNIT = 16
_MAX_HEAD_SIZE = 256


def unsupported(model: ModelConfig) -> str:
    """Why the kernels cannot run `model`; empty if they can."""
    if model.activation != "silu":
        return f"no kernel for the activation {model.activation}"
    if model.head_size % _HEAD_SIZE_UNIT or model.head_size > _MAX_HEAD_SIZE:
        return (
            f"no kernel for head size {model.head_size}, "
            f"only for multiples of {_HEAD_SIZE_UNIT} up to {_MAX_HEAD_SIZE}"
        )
    if model.hidden_size % _HEAD_SIZE_UNIT:
        return f"no kernel for hidden size {model.hidden_size}, no multiple of {_HEAD_SIZE_UNIT}"
    return ""


class FusedDecoder:
    """Runs steps; used by one thread. The model is one that `unsupported` has nothing against."""

    def __init__(
        self,
        model: ModelConfig,
        partition: Partition,
        *,
        weights: DecoderWeights[PackedLinear],
        num_positions: int,
        library: Library,
        num_threads: int,
    ) -> None:
        self._partition = partition
        self._lm_head = weights.lm_head
        self._final_norm = weights.final_norm
        # A tied embedding's rows are read from the packed output layer: it is held once.
        self._embedding_rows = (
            weights.lm_head.rows if weights.is_tied else weights.embedding.__getitem__
        )
        self._cos, self._sin = cosines_and_sines(
            model.rope, model.head_size, num_positions=num_positions
        )
        self._model = _model_struct(model, partition, weights.layers[0].down.num_inputs)
        self._model.cos, self._model.sin = address_of(self._cos), address_of(self._sin)
        self._model.num_positions = num_positions
        self._kept = weights.layers
        self._layers = [
            _layer_struct(layer, window)
            for layer, window in zip(weights.layers, model.windows, strict=True)
        ]
        self._lm_head_struct = weights.lm_head.as_struct()
        self._functions = library.functions
        self._context = ctypes.c_void_p(library.functions.create_context(num_threads))
        self._cache: KvCache | None = None
        self._caches: list[structs.Cache] = []

    def __del__(self) -> None:
        if hasattr(self, "_context"):
            self._functions.destroy_context(self._context)

    def run(self, step: StepInputs, cache: KvCache, *, all_reduce: AllReduce) -> Readout:
        """Run one step. `all_reduce` is in place.

        Raises:
            RuntimeStepError: the step would read or write outside of the KV cache.
        """
        functions, context, model = self._functions, self._context, self._model
        call = _Call(step, all_reduce(self._embed(step.token_ids[: _num_tokens(step)])))
        caches = self._caches_of(cache)
        fault = functions.check_step(model, caches[0], call.struct)
        if fault:
            raise RuntimeStepError(f"the step is malformed: {_FAULTS[fault]}")
        for layer, layer_cache in zip(self._layers, caches, strict=True):
            functions.attn_half(context, model, layer, layer_cache, call.struct)
            all_reduce(call.delta)
            functions.mlp_half(context, model, layer, call.struct)
            all_reduce(call.delta)
        return functools.partial(self._logits, call)

    def _logits(self, call: "_Call", tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.empty(len(tokens), self._partition.vocab_rows.size)
        self._functions.logits(
            self._context, self._model, address_of(self._final_norm), self._lm_head_struct,
            call.struct, address_of(tokens), len(tokens), address_of(logits), logits.shape[1],
        )  # fmt: skip
        # The kernel added it to the tokens' residual stream, and may be asked of them again.
        call.delta.index_fill_(0, tokens, 0)
        return logits

    def _embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """This follower's rows of the embedding, zero for tokens of others: [T, M]."""
        rows = self._partition.vocab_rows
        if rows.size == self._partition.vocab_size:
            return self._embedding_rows(token_ids)
        is_here = (token_ids >= rows.start) & (token_ids < rows.stop)
        local = (token_ids - rows.start).clamp_(0, rows.size - 1)
        return self._embedding_rows(local).masked_fill_(~is_here.unsqueeze(1), 0)

    def _caches_of(self, cache: KvCache) -> list[structs.Cache]:
        if self._cache is not cache:
            self._cache = cache
            self._caches = [
                structs.Cache(address_of(layer), layer.shape[1], cache.block_size)
                for layer in cache.layers
            ]
        return self._caches


class _Call:
    """The arrays of a step for the kernels, without the padding behind its last output."""

    def __init__(self, step: StepInputs, embedded: torch.Tensor) -> None:
        self.delta = embedded
        """[T, M]: what each half answers with."""
        blocks = step.blocks.view(step.num_rows, -1)
        self._arrays = (
            F.pad(step.last_tokens + 1, (1, 0)),
            step.positions,
            step.slots,
            blocks,
            embedded.new_zeros(embedded.shape, dtype=torch.float32),
        )
        starts, positions, slots, blocks, hidden = self._arrays
        self.struct = structs.Step(
            _num_tokens(step), len(step.last_tokens), address_of(starts), address_of(positions),
            address_of(slots), address_of(blocks), blocks.shape[1], address_of(hidden),
            address_of(embedded),
        )  # fmt: skip


def _num_tokens(step: StepInputs) -> int:
    return 1 + int(step.last_tokens[-1])


def _model_struct(model: ModelConfig, partition: Partition, inner_size: int) -> structs.Model:
    return structs.Model(
        hidden_size=model.hidden_size,
        head_size=model.head_size,
        num_q_heads=partition.q_heads.size,
        num_kv_heads=partition.kv_heads.size,
        inner_size=inner_size,
        rms_norm_eps=model.rms_norm_eps,
    )


def _layer_struct(layer: LayerWeights[PackedLinear], window: int) -> structs.Layer:
    return structs.Layer(
        input_norm=address_of(layer.input_norm),
        qkv=layer.qkv.as_struct(),
        q_norm=address_of(layer.q_norm),
        k_norm=address_of(layer.k_norm),
        output=layer.output.as_struct(),
        mlp_norm=address_of(layer.mlp_norm),
        gate_up=layer.gate_up.as_struct(),
        down=layer.down.as_struct(),
        window=window,
    )
