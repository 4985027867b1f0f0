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
        decodes_with_drafts(application),
    ):  # fmt: skip
        application.to_cpu()
    for wrapper in application.models:
        wrapper.model.register_forward_pre_hook(_BucketShape(wrapper.neuron_config))


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
    config.speculation_length = 0
    if length:
        application.token_generation_model = application.speculation_model
    try:
        yield
    finally:
        config.speculation_length = length


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
