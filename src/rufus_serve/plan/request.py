"""`PlanRequest`: what is asked, checked against model and hardware."""

from typing import Any

import msgspec

from rufus_serve.config.checks import conflicts
from rufus_serve.config.schema import BucketConfig, ServeConfig
from rufus_serve.errors import ConfigError
from rufus_serve.model.shape import ModelShape
from rufus_serve.plan.hardware import Instance
from rufus_serve.plan.memory import WeightFormat
from rufus_serve.runtime.layouts.compiled_shape import CompiledShape


class PlanRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A model, nodes of one type, and the load they are to carry."""

    shape: ModelShape
    instance: Instance
    num_nodes: int
    cores_per_node: int
    max_model_len: int
    max_num_seqs: int = 8
    weights: WeightFormat = "bfloat16"
    prompt_tokens: int = 2048
    """Length of the prompt that the time to first token is estimated for."""
    cp_degree: int = 1
    """Context parallelism in prefill."""
    attention_dp_degree: int = 1
    """Data parallelism of attention in decode."""
    draft: ModelShape | None = None
    """Fused speculation's draft model."""
    draft_model: str = ""
    """Its folder."""

    @property
    def shapes(self) -> tuple[ModelShape, ...]:
        """All that is held: the model, and its draft."""
        return (self.shape,) if self.draft is None else (self.shape, self.draft)

    @property
    def degree(self) -> int:
        """Cores over all nodes: the tensor parallel degree."""
        return self.num_nodes * self.cores_per_node

    @property
    def settings(self) -> dict[str, Any]:
        """The settings to serve it with, as a settings file has them."""
        return {
            "runtime": "neuron",
            "nodes": self.num_nodes,
            **self._number_formats(),
            "max_model_len": self.max_model_len,
            "max_num_seqs": self.max_num_seqs,
            "buckets": {"prefill": list(self._prefill_buckets())},
            "neuron": {"cores_per_node": self.cores_per_node, **self._hybrid()},
            **self._speculation(),
        }

    def _speculation(self) -> dict[str, Any]:
        if self.draft is None:
            return {}
        return {"speculation": {"method": "fused", "draft_model": self.draft_model}}

    def _number_formats(self) -> dict[str, str]:
        if self.weights == "int8":
            return {"dtype": "bfloat16", "weights": "int8"}
        return {"dtype": self.weights}

    def _hybrid(self) -> dict[str, int]:
        degrees = {"cp_degree": self.cp_degree, "attention_dp_degree": self.attention_dp_degree}
        return {name: degree for name, degree in degrees.items() if degree > 1}

    @property
    def compiled(self) -> CompiledShape:
        """The shapes that runtime neuron compiles for `settings`."""
        config = ServeConfig(model="planned", **self.settings)
        return CompiledShape.of(config, self.shape.max_model_len)

    def _prefill_buckets(self) -> tuple[int, ...]:
        """The default ones, doubled up to the longest prompt: contiguous KV prefills at once."""
        sizes = [size for size in BucketConfig().prefill if size < self.max_model_len]
        while sizes and 2 * sizes[-1] < self.max_model_len:
            sizes.append(2 * sizes[-1])
        return (*sizes, self.max_model_len)

    def on_nodes(self, num_nodes: int) -> "PlanRequest":
        """The same load on another number of nodes."""
        return msgspec.structs.replace(self, num_nodes=num_nodes)

    def with_attention_on_nodes(self) -> "PlanRequest":
        """The same load with context and data parallelism as wide as there are nodes."""
        nodes = self.num_nodes
        return msgspec.structs.replace(self, cp_degree=nodes, attention_dp_degree=nodes)


def check(request: PlanRequest) -> None:
    """Refuse what no arrangement of the hardware could do.

    Raises:
        ConfigError: with the values.
    """
    instance, limit = request.instance, request.shape.max_model_len
    if request.cores_per_node > instance.num_cores:
        raise ConfigError(
            f"{instance.name} has {instance.num_cores} cores, {request.cores_per_node} were asked"
        )
    if request.num_nodes > 1 and not instance.efa_gbit_per_s:
        raise ConfigError(
            f"{instance.name} has no EFA: its nodes cannot share one model; "
            "use one node, or trn1.32xlarge, trn1n.32xlarge or trn2.48xlarge"
        )
    if request.max_model_len > limit:
        raise ConfigError(
            f"max_model_len {request.max_model_len} is beyond the model's {limit} positions"
        )
    if request.prompt_tokens > request.max_model_len:
        raise ConfigError(
            f"a prompt of {request.prompt_tokens} tokens does not fit "
            f"max_model_len {request.max_model_len}"
        )
    for conflict in conflicts(ServeConfig(model="planned", **request.settings)):
        raise ConfigError(conflict.message)
