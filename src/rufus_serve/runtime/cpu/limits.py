"""What a checkpoint and this follower's memory allow: dtype, model length, KV blocks."""

import torch

from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import ModelError
from rufus_serve.model.tying import embedding_name
from rufus_serve.shard.kv_cache import block_bytes, blocks_per_sequence, num_blocks_that_fit
from rufus_serve.shard.model_config import ModelConfig
from rufus_serve.shard.partition import Partition
from rufus_serve.shard.tensor_source import TensorSource

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_STORED_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def resolve_dtype(config: ServeConfig, model: ModelConfig, source: TensorSource) -> torch.dtype:
    """The dtype of weights and KV cache. Raises `ModelError` if `auto` finds an unsupported one."""
    if config.dtype != "auto":
        return _DTYPES[config.dtype]
    name = model.dtype
    if not name:
        stored = source.dtype_of(embedding_name(source))
        name = _STORED_DTYPES.get(stored, stored)
    if name not in _DTYPES:
        raise ModelError(
            f"{config.model}: dtype {name} is not computed in; set dtype to one of "
            f"{', '.join(_DTYPES)} to convert the weights"
        )
    return _DTYPES[name]


def resolve_max_model_len(config: ServeConfig, model: ModelConfig) -> int:
    """The longest sequence. Raises `ModelError` if the model has no positions for it."""
    limit = model.max_model_len
    if config.max_model_len > limit:
        raise ModelError(
            f"max_model_len {config.max_model_len} exceeds the model's longest context {limit} "
            "(max_position_embeddings, rope scaling included); lower it, or 0 takes the model's"
        )
    return config.max_model_len or limit


def fitting_blocks(
    config: ServeConfig,
    model: ModelConfig,
    *,
    partition: Partition,
    dtype: torch.dtype,
    max_model_len: int,
) -> int:
    """KV blocks to offer, null block included.

    Raises:
        ModelError: fewer fit than configured, or than one longest sequence takes.
    """
    bytes_per_block = block_bytes(
        num_layers=model.num_layers,
        block_size=config.block_size,
        num_kv_heads=partition.kv_heads.size,
        head_size=model.head_size,
        dtype=dtype,
    )
    per_sequence = blocks_per_sequence(max_model_len, config.block_size)
    wanted = config.num_blocks or per_sequence + 1
    useful = max(config.max_num_seqs * per_sequence, wanted)
    fitting = num_blocks_that_fit(config.cpu.kv_cache_gib, bytes_per_block, num_useful=useful)
    if fitting < wanted:
        what = "num_blocks" if config.num_blocks else "one sequence of max_model_len and block 0"
        raise ModelError(
            f"{what} needs {wanted} KV blocks of {bytes_per_block} bytes, but {fitting} fit in "
            f"cpu.kv_cache_gib {config.cpu.kv_cache_gib:g}; raise it or lower max_model_len"
        )
    return config.num_blocks or fitting
