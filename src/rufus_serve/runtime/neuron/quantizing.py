"""Weights of 8 bits: NxD Inference makes them of the checkpoint, and shards what it made.

Runs against real NxD Inference 0.8 on CPU, tested.
"""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rufus_serve.runtime.neuron.model_classes import built_by

FIELDS: dict[str, Any] = {
    "quantized": True,
    "quantization_type": "per_channel_symmetric",
    "quantization_dtype": "int8",
    # As the CPU runtime does; NxD Inference would quantize the output layer as well.
    "modules_to_not_convert": ["lm_head"],
}
"""Of NeuronConfig, beside the path."""

PATH_FIELD = "quantized_checkpoints_path"
"""Where the quantized checkpoint lies while it is cut; nothing that is compiled depends on it."""


def quantize_checkpoint(application: Any) -> None:
    """Write the quantized checkpoint of `application`, if it wants one and there is none yet.

    transformers reads the whole checkpoint in float32 for it.
    """
    neuron_config = application.neuron_config
    if not neuron_config.quantized or Path(neuron_config.quantized_checkpoints_path).exists():
        return
    path = Path(neuron_config.quantized_checkpoints_path)
    # What a killed process left unfinished has this name, and never the other.
    part = path.with_name(f"{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    neuron_config.quantized_checkpoints_path = str(part)
    try:
        application.save_quantized_state_dict(application.model_path, application.config)
    finally:
        neuron_config.quantized_checkpoints_path = str(path)
    part.rename(path)


@contextlib.contextmanager
def converted_layers(application: Any) -> Iterator[None]:
    """Have `to_cpu` build the layers that a device's graphs are traced from.

    CPU mode builds float layers only, and would load 8 bits as floats without their scales.
    """
    from neuronx_distributed.parallel_layers.parallel_state import set_aot_mode
    from neuronx_distributed_inference.models.model_wrapper import DecoderModelInstance

    def build(model_class: Any, config: Any) -> Any:
        instance = DecoderModelInstance(model_class, config)
        # As while tracing: weights keep no initial values. NxD fails to cut those of
        # quantized layers that several ranks share the inputs of.
        set_aot_mode(True)
        try:
            instance.load_module()
        finally:
            set_aot_mode(False)
        return instance.module

    with built_by(build, application.models if application.neuron_config.quantized else []):
        yield
