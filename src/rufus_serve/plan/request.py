"""`PlanRequest`: what is asked, checked against model and hardware."""

import msgspec

from rufus_serve.config.schema import BucketConfig
from rufus_serve.errors import ConfigError
from rufus_serve.plan.hardware import Instance
from rufus_serve.plan.memory import WeightFormat
from rufus_serve.plan.model_shape import ModelShape
from rufus_serve.shard.buckets import Buckets, resolve_buckets


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
    prefill_buckets: tuple[int, ...] = BucketConfig().prefill

    @property
    def degree(self) -> int:
        """Cores over all nodes: the tensor parallel degree."""
        return self.num_nodes * self.cores_per_node

    @property
    def buckets(self) -> Buckets:
        """The shapes to compile."""
        return resolve_buckets(
            BucketConfig(prefill=self.prefill_buckets),
            max_num_seqs=self.max_num_seqs,
            max_model_len=self.max_model_len,
        )

    def on_nodes(self, num_nodes: int) -> "PlanRequest":
        """The same load on another number of nodes."""
        return msgspec.structs.replace(self, num_nodes=num_nodes)


def check(request: PlanRequest) -> None:
    """Refuse what no arrangement of the hardware could do.

    Raises:
        ConfigError: with the values.
    """
    instance, limit = request.instance, request.shape.max_position_embeddings
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
