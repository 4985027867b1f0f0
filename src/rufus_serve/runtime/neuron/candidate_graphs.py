"""Graphs that return each row's best tokens and total beside its logits, which stay where they are.

NxD Inference's own sampling graphs return token ids alone. This takes their place: one output
of K logits, K ids and a total, found where the output layer's shards lie, and a second one, the
logits, that is left on the device. Runs against real NxD Inference on CPU; `forward_ranked`, which
leaves an output on a device, is written to the documented contract and was never run.

Shape legend: B rows of the graph, S tokens of a row (more than one with drafts), V vocabulary,
K candidates.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rufus_serve.protocol.messages import Array


def fields_of_graphs(num_candidates: int) -> dict[str, Any]:
    """Of NeuronConfig: the output layer stays sharded, and logits are an output of their own."""
    return {
        "on_device_sampling_config": {"global_topk": num_candidates},
        "output_logits": True,
    }


@dataclass
class LeftLogits:
    """The logits of the last call, [B, S, V] and padding, where it left them."""

    tensor: Any = None


def with_candidates(cls: Any) -> Any:
    """`cls`, an application class, whose output's `tokens` are [R, 2K + 2], or [R, S, 2K + 2].

    That is K logits in falling order, their ids, the total at the row's temperature, and the row
    of `left_logits`, an attribute of the class.
    """
    left = LeftLogits()

    class Wrapper(_wrapper_class()):  # type: ignore[misc]
        """Has the logits left behind, and numbers the rows, which NxD Inference reorders."""

        def _forward(self, *args: Any) -> Any:
            import torch

            packed, left.tensor, *kv_cache = self._outputs(list(args))
            *shape, _ = packed.shape
            numbers = torch.arange(math.prod(shape), dtype=packed.dtype).reshape(*shape, 1)
            packed = torch.cat((packed, numbers), dim=-1)
            return packed if self.is_neuron() else [packed, *kv_cache]

        def _outputs(self, args: list[Any]) -> list[Any]:
            if not self.is_neuron():
                outputs: list[Any] = self.model(*args)
                return outputs
            ranks = self.neuron_config.local_ranks_size
            packed, logits = self.model.nxd_model.forward_ranked([args] * ranks)[0]
            return [packed.to("cpu"), logits]

    class Application(cls):  # type: ignore[misc]
        """As its base but for what its graphs return."""

        _model_cls = _with_packed_output(cls._model_cls)
        left_logits = left

        def get_model_wrapper_cls(self) -> Any:
            return Wrapper

    return Application


def packed_output(
    application: Any, output: Any, *, vocab_size: int
) -> tuple[Array, Callable[[], Array]]:
    """[tokens, 2K + 2] what a call found, and what fetches the logits that it left behind."""
    logits = application.left_logits.tensor

    def fetch() -> Array:
        whole: Array = logits.to("cpu").flatten(0, 1)[:, :vocab_size].float().numpy()
        return whole

    return output.tokens.flatten(0, -2).numpy(), fetch


def hide_logits(application: Any) -> None:
    """Have NxD Inference take the graphs for ones of a single output, once they are loaded.

    For a second one it does not pad a batch: CPU mode takes it for a KV cache, and with block
    tables a device's outputs are cut instead of their rows.
    """
    application.neuron_config.output_logits = False
    for wrapper in application.models:
        # CPU mode's models read it in every call.
        if wrapper.is_neuron():
            wrapper.neuron_config.output_logits = False


def _wrapper_class() -> Any:
    from neuronx_distributed_inference.models.model_wrapper import ModelWrapper

    return ModelWrapper


def _with_packed_output(model_class: Any) -> Any:
    class Model(model_class):  # type: ignore[misc]
        """As its base; its sampling returns what the leader samples from."""

        def _sample_on_device(self, logits: Any, sampling_params: Any, *_: Any) -> Any:
            count = self.neuron_config.on_device_sampling_config.global_topk
            group = self.lm_head.tensor_parallel_group
            temperatures = sampling_params[:, 2:3]
            if logits.shape[1] == 1:
                return pack(logits[:, -1], temperatures, count, group)
            return pack(logits, temperatures.unsqueeze(1), count, group)

    return Model


def pack(share: Any, temperatures: Any, count: int, group: Any) -> Any:
    """[..., 2K + 1] of logits whose shares [..., V / ranks] lie on the ranks of `group`.

    Ids are exact in float32 below 2 ** 24.
    """
    import torch
    from neuronx_distributed.operators.topk import topk
    from neuronx_distributed.parallel_layers.mappings import _gather_along_dim

    last = share.dim() - 1
    best, ids = topk(share, count, dim=last, gather_dim=last, process_group=group)
    own = torch.logsumexp(share / temperatures, dim=last, keepdim=True)
    totals = _gather_along_dim(own, partition_dim=last, process_group=group)
    total = torch.logsumexp(totals, dim=last, keepdim=True)
    return torch.cat((best, ids.to(best.dtype), total), dim=last)
