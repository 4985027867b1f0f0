"""`NeuronModel`: a checkpoint, checked and cut for one node; building it takes NxD Inference."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rufus_serve.config.schema import ServeConfig
from rufus_serve.errors import ConfigError, ModelError
from rufus_serve.model.config_json import ConfigJson, read_config
from rufus_serve.model.shape import ModelShape, shape_of
from rufus_serve.runtime.layouts.compiled_shape import CompiledShape, refuse_windows
from rufus_serve.runtime.neuron.application import application_class, build_application
from rufus_serve.runtime.neuron.candidate_graphs import with_candidates
from rufus_serve.runtime.neuron.checks import (
    check_attention_groups,
    check_candidates,
    check_quantizing,
    check_sharding,
)
from rufus_serve.runtime.neuron.fused_speculation import DraftModel
from rufus_serve.runtime.neuron.neuron_config import neuron_config_fields
from rufus_serve.runtime.neuron.overlay import config_overlay, write_overlay
from rufus_serve.runtime.neuron.quantizing import PATH_FIELD
from rufus_serve.runtime.neuron.topology import Topology


@dataclass(frozen=True)
class NeuronModel:
    """What NxD Inference is asked to build on one node."""

    config: ConfigJson
    decoder: ModelShape
    shape: CompiledShape
    topology: Topology
    dtype: str
    fields: dict[str, Any]
    """Of NeuronConfig."""
    draft: DraftModel | None = None
    """With fused speculation."""

    @classmethod
    def of(cls, config: ServeConfig, topology: Topology) -> "NeuronModel":
        """The model of `config` on the node of `topology`.

        Raises:
            ConfigError: the settings do not fit one another.
            ModelError: NxD Inference cannot shard or would misread this checkpoint.
        """
        config_json = read_config(Path(config.model))
        decoder = shape_of(config_json)
        shape = CompiledShape.of(config, decoder.max_model_len)
        refuse_windows(decoder, shape)
        check_sharding(decoder, topology)
        check_attention_groups(
            decoder,
            topology,
            cp_degree=config.neuron.cp_degree,
            dp_degree=config.neuron.attention_dp_degree,
        )
        if config.weights == "int8":
            check_quantizing(decoder)
        check_candidates(decoder, config.neuron.device_candidates)
        dtype = number_format(config, decoder.dtype or "bfloat16")
        fields = neuron_config_fields(config, shape, topology, dtype)
        draft = (
            DraftModel.of(config.speculation, topology, model=decoder, shape=shape)
            if shape.is_fused
            else None
        )
        return cls(config_json, decoder, shape, topology, dtype, fields, draft)

    @property
    def folders(self) -> list[Path]:
        """Of all checkpoints: the model's, and its draft's."""
        return [each.config.folder for each in (self, self.draft) if each is not None]

    @property
    def num_candidates(self) -> int:
        """Of each row, found by the graphs; 0 if they bring logits alone."""
        found = self.fields.get("on_device_sampling_config")
        return int(found.get("global_topk", 0)) if found else 0

    def build(self, work: Path, *, quantized: Path | None = None) -> Any:
        """The application, neither compiled nor loaded; `work` is needed as long as it is.

        `quantized`: where weights of 8 bits are made, if the model has such; else in `work`.
        """
        application = application_class(_architecture(self.config))
        if self.num_candidates:
            application = with_candidates(application)
        folder = _overlay(self.config, work / "checkpoint")
        fields = self.fields
        if fields.get("quantized"):
            fields = {**fields, PATH_FIELD: str(quantized or work / "quantized")}
        draft = None
        if self.draft is not None:
            self._check_class(self.draft, application)
            draft = self.draft, _overlay(self.draft.config, work / "draft")
        return build_application(application, folder, fields, draft=draft)

    def _check_class(self, draft: DraftModel, application: Any) -> None:
        architecture = _architecture(draft.config)
        if application_class(architecture) is not application:
            raise ModelError(
                f"speculation.draft_model is a {architecture}, the model a "
                f"{_architecture(self.config)}: NxD Inference runs both by one class; name a "
                "draft of the model's own architecture"
            )


def _overlay(config: ConfigJson, into: Path) -> Path:
    return write_overlay(config, config_overlay(config), into)


def _architecture(config: ConfigJson) -> str:
    """First entry of `architectures`, or what `model_type` stands for."""
    names = config.raw.get("architectures") or [config.raw.get("model_type", "")]
    return str(names[0])


def number_format(config: ServeConfig, checkpoint_dtype: str) -> str:
    """The number format to run in: NxD Inference's CPU mode has collectives in float32 only."""
    if config.neuron.mode == "device":
        return checkpoint_dtype if config.dtype == "auto" else config.dtype
    if config.dtype == "bfloat16" and config.nodes > 1:
        raise ConfigError(
            "dtype bfloat16 with neuron.mode nxdi-cpu on several ranks: its collectives are "
            "float32 only; set dtype to float32"
        )
    return "float32" if config.dtype == "auto" else config.dtype
