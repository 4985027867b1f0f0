"""`StrictCpuRuntime`: the CPU runtime behind the Neuron runtime's layouts."""

from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import torch

from rufus_serve.config.schema import ServeConfig
from rufus_serve.protocol.messages import RuntimeInfo, StepRequest
from rufus_serve.runtime.base import GroupSpec, Progress
from rufus_serve.runtime.cpu.runtime import CpuRuntime
from rufus_serve.runtime.cpu.strict.agreement import Agreement
from rufus_serve.runtime.cpu.strict.block import BlockDevice
from rufus_serve.runtime.cpu.strict.contiguous import ContiguousDevice
from rufus_serve.runtime.layouts.block import BlockLayout
from rufus_serve.runtime.layouts.calls import Call, check_token_ids
from rufus_serve.runtime.layouts.compiled_shape import CompiledShape, refuse_windows
from rufus_serve.runtime.layouts.contiguous import ContiguousLayout
from rufus_serve.runtime.logits import WholeLogits
from rufus_serve.shard.model_config import read_model_config


class StrictCpuRuntime(CpuRuntime):
    """See `Runtime`. `neuron.kv_layout` chooses the layout, as for runtime `neuron`.

    Followers are ranks: a shard per follower, cut as the CPU runtime cuts it.
    """

    def __init__(
        self, config: ServeConfig, node_rank: int, *, num_followers_on_host: int = 1
    ) -> None:
        super().__init__(config, node_rank, num_followers_on_host=num_followers_on_host)
        self._asked = config
        self._layout: ContiguousLayout | BlockLayout
        self._device: ContiguousDevice | BlockDevice
        self._agreement = Agreement(config.nodes)

    def load(self, progress: Progress) -> RuntimeInfo:
        """As the CPU runtime; what it says of itself is what a Neuron follower would say.

        Raises:
            ConfigError: the compiled sizes do not fit one another.
            ModelError: as the CPU runtime, or a device could not serve the model.
        """
        model = read_model_config(Path(self._asked.model))
        shape = CompiledShape.of(self._asked, model.max_model_len)
        refuse_windows(model, shape)
        if shape.is_block:
            self._layout, self._device = BlockLayout(shape), BlockDevice(shape)
        else:
            self._layout, self._device = ContiguousLayout(shape), ContiguousDevice(shape)
        self._config = self._asked.model_copy(
            update={
                # Padding stands where drafts would.
                "max_model_len": shape.max_model_len + shape.tokens_per_row - 1,
                "block_size": self._device.cell_size,
                "num_blocks": self._device.num_cells,
            }
        )
        info = msgspec.structs.replace(
            super().load(progress),
            **shape.of_info(),
            batched_prefill=False,
            prompt_logprobs=False,
        )
        self._loaded = replace(self._require_loaded(), info=info)
        return info

    def join(self, group: GroupSpec) -> None:
        """As the CPU runtime; KV memory has its compiled size, whatever the group uses of it."""
        self._agreement = Agreement(group.num_nodes)
        super().join(group)

    def warm_up(self, progress: Progress) -> None:
        """Make a call to every graph; all followers do it together."""
        calls = list(self._layout.warm_up())
        for index, call in enumerate(calls):
            self._forward(call)
            progress(index + 1, len(calls), "graphs")

    def _num_cache_blocks(self, group: GroupSpec) -> int:  # noqa: ARG002 - it is compiled in
        return self._device.num_cells

    def _run(self, step: StepRequest) -> WholeLogits | None:
        vocab_size = self._require_loaded().model.vocab_size
        check_token_ids(step, vocab_size)
        is_prefill = step.phase.value == "prefill"
        calls = self._layout.prefill(step) if is_prefill else self._layout.decode(step)
        wanted = step.want_logits and self._node_rank == 0
        logits = np.empty((step.num_rows, vocab_size), np.float32) if wanted else None
        self.last_wait_s = 0.0
        for call in calls:
            result = self._forward(call)
            if logits is not None and call.rows and result is not None:
                logits[list(call.rows)] = result[call.places]
        return WholeLogits(logits) if step.want_logits else None

    @torch.inference_mode()  # Warming up as well: the KV cache's buffers outlive the call.
    def _forward(self, call: Call) -> np.ndarray | None:
        """A device's `forward`: logits [tokens, V] on node rank 0; a prefill's are its last's."""
        prepared = self._device.prepare(call.arguments)
        inputs = self._device.inputs(prepared)
        joined = self._require_joined()
        try:
            self._agreement.check(prepared, joined.communicator)
        except BaseException:
            self._leave()
            raise
        share = self._compute(inputs, want_logits=bool(call.rows))
        logits = None if share is None else share.rows(np.arange(share.num_rows))
        if logits is None or prepared.is_prefill:
            return logits
        rows: np.ndarray = logits[prepared.rows]
        return rows
