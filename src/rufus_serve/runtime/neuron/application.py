"""Architecture to NxD Inference application; the one place that imports the SDK's model code."""

import importlib
from pathlib import Path
from typing import Any

from rufus_serve.errors import ConfigError, ModelError
from rufus_serve.runtime.neuron.fused_speculation import DraftModel
from rufus_serve.runtime.neuron.neuron_config import refuse_unknown_fields

# Named as in NxD Inference's own registry (utils/constants.py), which is not imported because it
# loads every model it has, vision included.
_APPLICATIONS = {
    "LlamaForCausalLM": ("llama", "NeuronLlamaForCausalLM"),
    "MistralForCausalLM": ("llama", "NeuronLlamaForCausalLM"),
    "MixtralForCausalLM": ("mixtral", "NeuronMixtralForCausalLM"),
    "Qwen2ForCausalLM": ("qwen2", "NeuronQwen2ForCausalLM"),
    "Qwen3ForCausalLM": ("qwen3", "NeuronQwen3ForCausalLM"),
    "Qwen3MoeForCausalLM": ("qwen3_moe", "NeuronQwen3MoeForCausalLM"),
}


def application_class(architecture: str) -> Any:
    """NxD Inference's application class for a Hugging Face architecture.

    Raises:
        ModelError: there is none here.
        ConfigError: NxD Inference is not installed.
    """
    if architecture not in _APPLICATIONS:
        raise ModelError(
            f"architecture {architecture} is not served by runtime neuron; it serves "
            f"{', '.join(_APPLICATIONS)}"
        )
    module, name = _APPLICATIONS[architecture]
    package = "neuronx_distributed_inference"
    try:
        return getattr(
            importlib.import_module(f"{package}.models.{module}.modeling_{module}"), name
        )
    except ImportError as error:
        raise ConfigError(
            f"runtime neuron needs NxD Inference 0.8, which cannot be imported here ({error}); "
            "set cluster.python to the Neuron environment's interpreter"
        ) from error


def build_application(
    cls: Any,
    checkpoint_folder: Path,
    fields: dict[str, Any],
    *,
    draft: tuple[DraftModel, Path] | None = None,
) -> Any:
    """An application of `cls`, neither compiled nor loaded; with a `draft` in a folder of its own.

    Raises:
        ConfigError: NxD Inference refuses `fields`, or would ignore one.
    """
    from neuronx_distributed_inference.utils.hf_adapter import load_pretrained_config

    config_class = cls.get_config_cls()
    neuron_config_class = config_class.get_neuron_config_cls()
    refuse_unknown_fields(fields, neuron_config_class)
    folder = str(checkpoint_folder)
    try:
        neuron_config = neuron_config_class(**fields)
        config = config_class(neuron_config, load_config=load_pretrained_config(folder))
        if draft is not None:
            config.fused_spec_config = _draft_config(cls, neuron_config, *draft)
        return cls(folder, config)
    except (AssertionError, ValueError, NotImplementedError) as error:
        raise ConfigError(f"NxD Inference refuses the configuration: {error}") from error


def _draft_config(cls: Any, neuron_config: Any, draft: DraftModel, folder: Path) -> Any:
    """What NxD Inference asks of a draft, a model of the same class."""
    from neuronx_distributed_inference.models.config import FusedSpecNeuronConfig
    from neuronx_distributed_inference.utils.hf_adapter import load_pretrained_config

    config = cls.get_config_cls()(
        draft.neuron_config(neuron_config), load_config=load_pretrained_config(str(folder))
    )
    return FusedSpecNeuronConfig(cls._model_cls, draft_config=config, draft_model_path=str(folder))
