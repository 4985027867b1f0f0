"""NxD Inference's own CPU mode: one process per rank, gloo between them.

Runs against real NxD Inference 0.8 on CPU, tested. What CPU mode leaves out of the graphs'
behaviour is put back here.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from rufus_serve.runtime.base import GroupSpec
from rufus_serve.runtime.neuron.model_classes import built_by
from rufus_serve.runtime.neuron.quantizing import converted_layers, quantize_checkpoint

ENVIRONMENT = {
    # NxD reads it while it is imported.
    "NXD_CPU_MODE": "1",
    # transformers must not take a torch-xla that is not driving a device.
    "USE_TORCH_XLA": "0",
}


def join_gloo(group: GroupSpec, *, timeout_s: float) -> None:
    """Make the process group that `to_cpu` finds and uses."""
    import torch.distributed as dist

    method = group.rendezvous
    if not method.startswith("tcp://"):
        name = method.strip("/").replace("/", "-")
        method = f"file://{Path(tempfile.gettempdir()) / f'{name}.gloo'}"
    dist.init_process_group(
        "gloo",
        init_method=method,
        rank=group.node_rank,
        world_size=group.num_nodes,
        timeout=timedelta(seconds=timeout_s),
    )


def leave_gloo() -> None:
    """Close the process group, if there is one."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def load_on_cpu(application: Any) -> None:
    """Shard and load the weights, and run every call in the shape of its bucket."""
    if not hasattr(application, "_get_captured_tensors_offset"):
        # SDK 2.27 to 2.29 call it for every model but define it for image models only.
        vars(application)["_get_captured_tensors_offset"] = lambda: 0
    quantize_checkpoint(application)
    with (
        whole_meshes(), kept_rank_ordering(), converted_layers(application),
        decodes_with_drafts(application), draft_groups(application),
    ):  # fmt: skip
        application.to_cpu()
    for wrapper in application.models:
        for decoder in _decoders(wrapper.model):
            decoder.register_forward_pre_hook(_BucketShape(wrapper.neuron_config))
    if application.neuron_config.enable_fused_speculation:
        _keep_fused_caches(application)


@contextlib.contextmanager
def whole_meshes() -> Iterator[None]:
    """Make every row of a mesh a process group of its own, while groups are made.

    NxD Inference names the first row and passes the mesh as an option of torch-xla's back end,
    which makes them all; gloo takes no such option and makes that one row. Whoever is in
    another would be left without a group.
    """
    import torch.distributed as dist

    make: Any = dist.new_group

    def new_group(ranks: Any = None, **options: Any) -> Any:
        device = options.get("pg_options")
        mesh = device["xla_pg_options"]["mesh"] if isinstance(device, dict) else None
        if not mesh:
            return make(ranks, **options)
        # All ranks make all groups, in one order, as torch.distributed wants it.
        rows = {tuple(row): make(list(row), backend="gloo") for row in mesh}
        return next(group for row, group in rows.items() if dist.get_rank() in row)

    vars(dist)["new_group"] = new_group
    try:
        yield
    finally:
        vars(dist)["new_group"] = make


@contextlib.contextmanager
def kept_rank_ordering() -> Iterator[None]:
    """Shard weights in the order that their layer asks for, while a checkpoint is cut.

    A layer whose heads lie on the ranks in another order in decode than in prefill says so in
    `rank_ordering`. NxD copies it to the weight, which the cutting reads, for devices only.
    """
    from neuronx_distributed_inference.models import application_base

    cut = application_base.get_sharded_checkpoint

    def cut_in_order(checkpoint: Any, model: Any, *args: Any, **options: Any) -> Any:
        for module in model.modules():
            order = getattr(module, "rank_ordering", None)
            if order is not None and hasattr(module, "weight"):
                module.weight.rank_ordering = order
        return cut(checkpoint, model, *args, **options)

    application_base.get_sharded_checkpoint = cut_in_order
    try:
        yield
    finally:
        application_base.get_sharded_checkpoint = cut


@contextlib.contextmanager
def decodes_with_drafts(application: Any) -> Iterator[None]:
    """Have `to_cpu` take a model whose decodes hold several tokens a row.

    It refuses them by the number alone; the model's code is the one that graphs are traced from.
    Afterwards it looks for the model of plain decodes, in whose place this one is.
    """
    config, length = application.neuron_config, application.neuron_config.speculation_length
    application.token_generation_model = application.get_generation_model()
    config.speculation_length = 0
    try:
        yield
    finally:
        config.speculation_length = length


@contextlib.contextmanager
def draft_groups(application: Any) -> Iterator[None]:
    """Have `to_cpu` make the ranks' group of a fused draft model before it makes the model.

    A device's is made while a process group is set up for tracing.
    """
    from neuronx_distributed_inference.models.application_base import init_custom_process_group_fn

    def build(model_class: Any, config: Any) -> Any:
        init_custom_process_group_fn(config)
        return model_class(config)

    is_fused = application.neuron_config.enable_fused_speculation
    with built_by(build, application.models if is_fused else []):
        yield


def _decoders(model: Any) -> list[Any]:
    """`model`, or the draft and the target of a fused one, which do not hear of its bucket."""
    return [model.draft_model, model.target_model] if hasattr(model, "draft_model") else [model]


def _keep_fused_caches(application: Any) -> None:
    """Store the caches that a fused call returns, in prefill's model and decode's.

    NxD Inference looks for the draft's and the target's where they are not.
    """

    def run_in(wrapper: Any) -> Any:
        def run(*args: Any) -> list[Any]:
            # After the tokens come the next call's ids, mask and positions.
            tokens, _, _, _, *caches = wrapper.model(*args)
            for each in application.models:
                for held, cache in zip(_states(each.model), caches, strict=True):
                    held.data = cache
            return [tokens]

        return run

    for wrapper in application.models:
        wrapper._forward = run_in(wrapper)  # noqa: SLF001 - padding and sorting are around it
    vars(application)["_copy_past_key_values"] = lambda _: None


def _states(model: Any) -> list[Any]:
    """What a fused model keeps from call to call, in the order in which it returns them."""
    caches = [cache for each in _decoders(model) for cache in each.kv_mgr.past_key_values]
    buffer = getattr(model, "hidden_state_rolling_buffer", None)
    return caches if buffer is None else [*caches, buffer.hidden_states]


class _BucketShape:
    """Sets the sizes that tracing a bucket fixes on a device, and that CPU mode never sets."""

    def __init__(self, neuron_config: Any) -> None:
        self._config = neuron_config

    def __call__(self, module: Any, inputs: tuple[Any, ...]) -> None:
        new, mask = inputs[0].shape[1], inputs[1]
        if not self._config.is_prefix_caching:
            is_decode = new in (1, self._config.speculation_length)
            module.n_positions = mask.shape[1] if is_decode else new
            return
        prefix = 0 if mask.dim() == 1 else mask.shape[1]
        module.prefix_size, module.n_active_tokens = prefix, new
        longest = self._config.max_context_length
        module.n_positions = min(prefix + new, longest) if new > 1 else prefix
