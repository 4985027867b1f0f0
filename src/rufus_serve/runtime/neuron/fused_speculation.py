"""Fused speculation: a draft model, or an EAGLE head, in the same graphs as the model.

A decode drafts k - 1 tokens, checks them with the model, and returns the model's own greedy
tokens up to the first that was not drafted. Runs against real NxD Inference on CPU; on a device,
written to the documented contract and never run there.

Shape legend: R rows of a call, k `speculation_length`.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rufus_serve.config.speculation import SpeculationConfig
from rufus_serve.errors import ModelError
from rufus_serve.model.config_json import ConfigJson, read_config
from rufus_serve.model.shape import ModelShape, shape_of
from rufus_serve.protocol.messages import Array
from rufus_serve.runtime.layouts.compiled_shape import CompiledShape, refuse_windows
from rufus_serve.runtime.neuron.checks import check_sharding
from rufus_serve.runtime.neuron.topology import Topology


def fields_of_graphs(speculation: SpeculationConfig) -> dict[str, Any]:
    """Of NeuronConfig, `speculation_length` apart: tokens are chosen greedily on the device."""
    fields: dict[str, Any] = {
        "enable_fused_speculation": True,
        "on_device_sampling_config": {"do_sample": False},
    }
    if speculation.method == "eagle":
        fields["enable_eagle_speculation"] = True
    return fields


@dataclass(frozen=True)
class DraftModel:
    """The checkpoint that drafts come from; cut into as many shards as the model."""

    config: ConfigJson
    decoder: ModelShape
    is_eagle: bool

    @classmethod
    def of(
        cls,
        speculation: SpeculationConfig,
        topology: Topology,
        *,
        model: ModelShape,
        shape: CompiledShape,
    ) -> "DraftModel":
        """The draft of `model`.

        Raises:
            ModelError: it has another vocabulary, or NxD Inference cannot shard it.
        """
        config = read_config(Path(speculation.draft_model))
        decoder = shape_of(config)
        if decoder.vocab_size != model.vocab_size:
            raise ModelError(
                f"speculation.draft_model has a vocabulary of {decoder.vocab_size} tokens, the "
                f"model one of {model.vocab_size}: its tokens would be others; name a draft of "
                "the model's own family"
            )
        try:
            refuse_windows(decoder, shape)
            check_sharding(decoder, topology)
        except ModelError as error:
            raise ModelError(f"speculation.draft_model: {error}") from error
        return cls(config, decoder, speculation.method == "eagle")

    def neuron_config(self, of_model: Any) -> Any:
        """A NeuronConfig for the draft, from the one of the model that it drafts for."""
        fields = copy.deepcopy(of_model)
        fields.enable_fused_speculation = False
        if self.is_eagle:
            # Its last run brings the hidden states that the next step begins with.
            fields.is_eagle_draft = True
        else:
            fields.speculation_length = 0
        return fields


def chosen_tokens(output: Any) -> Array:
    """[R, k] int32 what a call chose, each row padded with -1.

    A device's graphs bring the next call's inputs beside them, which the leader knows better.
    """
    outputs = output.fused_outputs
    tokens = outputs[0] if isinstance(outputs, list | tuple) else outputs
    chosen: Array = tokens.to("cpu").numpy()
    return chosen
