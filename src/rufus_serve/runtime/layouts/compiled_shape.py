"""`CompiledShape`: every size that is fixed when the graphs are compiled."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import ConfigError, ModelError
from rufus_serve.model.shape import ModelShape
from rufus_serve.runtime.layouts.buckets import SMALLEST_PREFIX_BUCKET, first_gap


@dataclass(frozen=True)
class CompiledShape:
    """Sizes in tokens, rows and blocks; equal on every node."""

    is_block: bool
    max_model_len: int
    seq_len: int
    """Tokens of one sequence that the KV cache holds; whole blocks in the block layout."""
    max_num_seqs: int
    block_size: int
    num_blocks: int
    """Null block included."""
    prefill: tuple[int, ...]
    prefix: tuple[int, ...]
    context: tuple[int, ...]
    tokens_per_row: int = 1
    """Tokens of one sequence that a decode computes, drafts included; always so many."""
    is_fused: bool = False
    """Whether a decode makes its drafts itself, and chooses tokens."""

    @classmethod
    def of(cls, config: ServeConfig, max_positions: int) -> "CompiledShape":
        """The shape for `config` and a model of `max_positions`.

        Raises:
            ConfigError: the sizes do not fit one another.
        """
        _refuse_decode_batches(config)
        if config.neuron.kv_layout == "block":
            return _block(config, max_positions)
        return _contiguous(config, max_positions)

    def of_info(self) -> dict[str, Any]:
        """The fields of `RuntimeInfo` that follow from the shape."""
        return {
            "block_size": self.block_size,
            "num_blocks": self.num_blocks,
            "max_model_len": self.max_model_len,
            "prefill_buckets": self.prefill,
            "decode_batch_buckets": (self.max_num_seqs * self.inputs_per_row,),
            "context_buckets": self.context,
            "prefix_caching": self.is_block,
            "segmented_prefill": self.is_block,
            "multi_token_decode": self.inputs_per_row > 1,
            "drafts_are_free": self.inputs_per_row > 1,
            "chosen_tokens": self.tokens_per_row if self.is_fused else 0,
        }

    @property
    def inputs_per_row(self) -> int:
        """Tokens of one sequence that a decode may be given."""
        return 1 if self.is_fused else self.tokens_per_row


def refuse_windows(model: ModelShape, shape: CompiledShape) -> None:
    """Raise ModelError if a sliding window would close within `shape`."""
    narrow = [window for window in model.windows if 0 < window < shape.max_model_len]
    if narrow:
        raise ModelError(
            f"sliding_window {narrow[0]} < max_model_len {shape.max_model_len}: windowed attention "
            f"is not supported by runtime neuron; set max_model_len to {narrow[0]} or less"
        )


def _contiguous(config: ServeConfig, max_positions: int) -> CompiledShape:
    """A prompt is prefilled in one call, so the longest sequence is the largest prefill."""
    largest = config.buckets.prefill[-1]
    length = config.max_model_len or min(max_positions, largest)
    if length > largest:
        raise ConfigError(
            f"largest buckets.prefill {largest} < max_model_len {length}: the contiguous KV layout "
            f"prefills in one step; add {length} to buckets.prefill or lower max_model_len"
        )
    tokens_per_row = 1 + config.num_speculative_tokens
    prefill = _up_to(length, config.buckets.prefill)
    if tokens_per_row > 1:
        _check_drafts(tokens_per_row, prefill)
    return CompiledShape(
        is_block=False,
        # A decode's last token must lie within the line, whether its drafts are used or not.
        max_model_len=length - tokens_per_row + 1,
        seq_len=length,
        max_num_seqs=config.max_num_seqs,
        block_size=length,
        num_blocks=config.max_num_seqs + 1,
        prefill=prefill,
        prefix=(),
        context=_up_to(length, config.buckets.context or _doubling(128, length)),
        tokens_per_row=tokens_per_row,
        is_fused=config.speculation.is_fused,
    )


def _check_drafts(tokens_per_row: int, prefill: tuple[int, ...]) -> None:
    if tokens_per_row in prefill:
        raise ConfigError(
            f"prefill bucket {tokens_per_row} = 1 + speculation.num_speculative_tokens: NxD "
            "Inference tells a decode with drafts from a prefill by its width; change either"
        )
    if tokens_per_row > prefill[-1]:
        raise ConfigError(
            f"1 + speculation.num_speculative_tokens = {tokens_per_row} > max_model_len "
            f"{prefill[-1]}: a sequence has no room for its drafts; lower the former"
        )


def _block(config: ServeConfig, max_positions: int) -> CompiledShape:
    length, size = config.max_model_len or max_positions, config.block_size
    blocks = -(-length // size)
    seq_len = blocks * size
    prefill = tuple(b for b in config.buckets.prefill if b <= seq_len) or (seq_len,)
    shape = CompiledShape(
        is_block=True,
        max_model_len=length,
        seq_len=seq_len,
        max_num_seqs=config.max_num_seqs,
        block_size=size,
        num_blocks=config.num_blocks or blocks * config.max_num_seqs + 1,
        prefill=prefill,
        prefix=_prefix_buckets(config, prefill[-1], seq_len),
        context=_up_to(seq_len, config.buckets.context or _doubling(128, seq_len)),
    )
    _check_blocks(shape)
    return shape


def _prefix_buckets(config: ServeConfig, largest_prefill: int, seq_len: int) -> tuple[int, ...]:
    """As configured; else one wherever a full prefill ends, or doubling if one prefill does."""
    given = config.neuron.neuron_config.get("prefix_buckets")
    if given:
        return tuple(sorted(int(size) for size in given))
    if largest_prefill < SMALLEST_PREFIX_BUCKET:
        return ()
    if largest_prefill < seq_len:
        return tuple(range(largest_prefill, seq_len, largest_prefill))
    return tuple(size for size in _doubling(SMALLEST_PREFIX_BUCKET, seq_len) if size < seq_len)


def _check_blocks(shape: CompiledShape) -> None:
    size = shape.block_size
    for name, sizes in (("prefix bucket", shape.prefix), ("context bucket", shape.context)):
        for bucket in sizes:
            if bucket % size:
                raise ConfigError(
                    f"{name} {bucket} % block_size {size} = {bucket % size}, must be 0: the cache "
                    "is read in whole blocks; change the bucket or block_size"
                )
    tile = block_tile(shape.seq_len // size)
    if size % tile:
        raise ConfigError(
            f"block_size {size} % {tile} = {size % tile}, must be 0: with "
            f"{shape.seq_len // size} blocks per sequence NxD Inference cuts a block into {tile} "
            "tiles; choose a larger power of two as block_size"
        )
    gap = first_gap(shape.max_model_len, prefill=shape.prefill, prefix=shape.prefix)
    if gap is not None:
        raise ConfigError(
            f"no prefill goes on from {gap} tokens: prefill buckets {list(shape.prefill)} and "
            f"prefix buckets {list(shape.prefix)} do not reach max_model_len "
            f"{shape.max_model_len}; a prefill over a prefix needs a bucket of "
            f"{SMALLEST_PREFIX_BUCKET} or more and a prefix bucket at most that far from the last"
        )


def block_tile(blocks_per_sequence: int) -> int:
    """Tiles that NxD Inference 0.8 cuts a KV block into, so that a sequence has 128 or more."""
    return 1 << (-(-128 // blocks_per_sequence) - 1).bit_length()


def _refuse_decode_batches(config: ServeConfig) -> None:
    """One decode graph for all rows: the inputs of a smaller one come in two different sizes."""
    rows = config.buckets.decode_batch
    if rows not in ((), (config.max_num_seqs,)):
        raise ConfigError(
            f"buckets.decode_batch {list(rows)}: runtime neuron decodes max_num_seqs "
            f"{config.max_num_seqs} rows in one graph, since NxD Inference 0.8 fails to pad the "
            "inputs of smaller ones; leave buckets.decode_batch empty"
        )


def _up_to(limit: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """`sizes` below `limit`, and `limit`."""
    return (*takewhile(lambda size: size < limit, sizes), limit)


def _doubling(first: int, limit: int) -> tuple[int, ...]:
    return tuple(first << power for power in range(limit.bit_length()) if first << power < limit)
