"""`ServeConfig` to the fields of NxD Inference's `NeuronConfig`.

NxD Inference only logs fields it does not know, so a misspelt one would change nothing.
"""

import ast
import difflib
import inspect
import textwrap
from typing import Any

from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import ConfigError
from rufus_serve.runtime.layouts.compiled_shape import CompiledShape
from rufus_serve.runtime.neuron import fused_speculation, quantizing
from rufus_serve.runtime.neuron.candidate_graphs import fields_of_graphs
from rufus_serve.runtime.neuron.environment import LOGICAL_CORES
from rufus_serve.runtime.neuron.topology import Topology

_SETTINGS = {
    "attention_dp_degree": "neuron.attention_dp_degree",
    "context_encoding_buckets": "buckets.prefill",
    "cp_degree": "neuron.cp_degree",
    **dict.fromkeys(
        ("enable_eagle_speculation", "enable_fused_speculation", "is_eagle_draft"),
        "speculation.method",
    ),
    "is_block_kv_layout": "neuron.kv_layout",
    "is_prefix_caching": "neuron.kv_layout",
    "local_ranks_size": "neuron.cores_per_node",
    **dict.fromkeys((*quantizing.FIELDS, quantizing.PATH_FIELD), "weights"),
    "pa_block_size": "block_size",
    "pa_num_blocks": "num_blocks",
    "logical_nc_config": "neuron.target",
    "seq_len": "max_model_len",
    "speculation_length": "speculation.num_speculative_tokens",
    "target": "neuron.target",
    "token_generation_buckets": "buckets.context",
    "torch_dtype": "dtype",
    "tp_degree": "nodes and neuron.cores_per_node",
    "world_size": "nodes and neuron.cores_per_node",
}
_REFUSED = {
    "allow_input_truncation": "a prompt would be cut silently",
    "async_mode": "it runs a token ahead of the leader, which samples",
    "chunked_prefill_config": "NxD Inference 0.8 has no implementation of it",
    "flash_decoding_enabled": "it changes what a KV line holds",
    "kv_cache_quant": "it changes no KV cache in NxD Inference 0.8; kv_quant_config does",
    "is_medusa": "followers return logits, not tokens",
    "lora_config": "adapters are not passed to followers",
    "on_device_sampling_config": "the leader samples",
    "output_logits": "the leader samples",
    "padding_side": "followers pad on the right",
    "pp_degree": "all nodes form one tensor-parallel group",
    "token_tree_config": "drafts are one behind the other",
    "token_generation_batches": "NxD Inference 0.8 fails to pad the inputs of smaller graphs",
    "windowed_context_encoding_size": "a prefill step is one call",
}
_MAY_OVERRIDE = {"prefix_buckets", "save_sharded_checkpoint"}


def neuron_config_fields(
    config: ServeConfig, shape: CompiledShape, topology: Topology, dtype: str
) -> dict[str, Any]:
    """All fields to construct a NeuronConfig with.

    Raises:
        ConfigError: `neuron.neuron_config` has a field that is set by rufus-serve.
    """
    rows = shape.max_num_seqs
    fields: dict[str, Any] = {
        "tp_degree": topology.tp_degree,
        "world_size": topology.tp_degree,
        "start_rank_id": topology.start_rank_id,
        "local_ranks_size": topology.cores_per_node,
        "cp_degree": config.neuron.cp_degree,
        "attention_dp_degree": config.neuron.attention_dp_degree,
        "batch_size": rows,
        "tkg_batch_size": rows,
        "max_batch_size": rows,
        "kv_cache_batch_size": rows,
        "ctx_batch_size": 1,
        "is_continuous_batching": True,
        "seq_len": shape.seq_len,
        "max_length": shape.seq_len,
        "n_positions": shape.seq_len,
        "max_context_length": shape.seq_len,
        "torch_dtype": dtype,
        "target": config.neuron.target,
        "logical_nc_config": LOGICAL_CORES[config.neuron.target],
        "enable_bucketing": True,
        "context_encoding_buckets": list(shape.prefill),
        "token_generation_buckets": list(shape.context),
        "save_sharded_checkpoint": config.neuron.mode == "device",
        **(_block_fields(shape) if shape.is_block else {"apply_seq_ids_mask": True}),
        **_chosen_fields(config, shape),
    }
    extra = config.neuron.neuron_config
    _refuse_owned(extra, fields)
    return {**fields, **extra}


def _chosen_fields(config: ServeConfig, shape: CompiledShape) -> dict[str, Any]:
    """Of what a configuration may do without."""
    fields: dict[str, Any] = {}
    if shape.tokens_per_row > 1:
        fields["speculation_length"] = shape.tokens_per_row
    if shape.is_fused:
        fields |= fused_speculation.fields_of_graphs(config.speculation)
    if config.neuron.device_candidates:
        fields |= fields_of_graphs(config.neuron.device_candidates)
    if config.weights == "int8":
        fields |= quantizing.FIELDS
    return fields


def _block_fields(shape: CompiledShape) -> dict[str, Any]:
    return {
        "is_block_kv_layout": True,
        "is_prefix_caching": True,
        "pa_num_blocks": shape.num_blocks,
        "pa_block_size": shape.block_size,
        "prefix_buckets": list(shape.prefix),
    }


def _refuse_owned(extra: dict[str, Any], fields: dict[str, Any]) -> None:
    for name, value in extra.items():
        if name in _REFUSED and value:
            raise ConfigError(f"neuron.neuron_config.{name} is not possible: {_REFUSED[name]}")
        if (name in fields or name in _SETTINGS) and name not in _MAY_OVERRIDE:
            instead = f"; use {_SETTINGS[name]}" if name in _SETTINGS else ""
            raise ConfigError(f"neuron.neuron_config.{name} is set by rufus-serve{instead}")


def refuse_unknown_fields(fields: dict[str, Any], config_class: type) -> None:
    """Raise ConfigError for a field that `config_class` would ignore, naming the nearest."""
    known = accepted_fields(config_class)
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(
                f"neuron.neuron_config.{name} is not a field of {config_class.__name__}, which "
                f"would ignore it{hint}"
            )


def accepted_fields(config_class: type) -> set[str]:
    """Names that `config_class` and its bases take out of their keyword arguments."""
    known: set[str] = set()
    for cls in inspect.getmro(config_class):
        if cls is not object:
            known |= _popped(ast.parse(textwrap.dedent(inspect.getsource(cls))))
            known |= set(inspect.signature(cls).parameters)
    return known - {"self", "kwargs", "args"}


def _popped(tree: ast.AST) -> set[str]:
    """Every `name` of a `kwargs.pop("name", …)` in `tree`."""
    return {
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "pop"
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    }
