"""The stages of a bring-up: the smallest settings of each kind, smaller before larger."""

import msgspec

from rufus_serve.config.schema import (
    ArtifactConfig,
    BucketConfig,
    ClusterConfig,
    RecoveryConfig,
    ServeConfig,
)
from rufus_serve.model.shape import ModelShape
from rufus_serve.plan.tensor_parallel import divides

_LENGTH = 512
_ROWS = 2
_MAX_DEGREE = 64


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """One way to serve the model."""

    name: str
    config: ServeConfig
    skipped: str = ""
    """Why it is not tried; empty if it is."""


def bring_up_stages(config: ServeConfig, shape: ModelShape) -> list[Stage]:
    """One process, several on this host with as many ranks, and what was configured."""
    # Followers on CPUs need not divide a model evenly.
    degree = 2 if config.runtime == "cpu" else smallest_degree(shape)
    small = _small(config, shape)
    on_device = config.runtime == "neuron" and config.neuron.mode == "device"
    cores = {"cores_per_node": degree if on_device else 1, "cp_degree": 1, "attention_dp_degree": 1}
    alone = small.neuron.model_copy(update=cores)
    shared = alone.model_copy(update={"cores_per_node": 1})
    return [
        Stage(name="one process", config=small.model_copy(update={"nodes": 1, "neuron": alone})),
        Stage(
            name=f"{degree} processes on this host",
            config=small.model_copy(update={"nodes": degree, "neuron": shared}),
            skipped="" if degree > 1 else "no tensor parallel degree above 1 divides the model",
        ),
        Stage(name="as configured", config=config, skipped=_why_not(config)),
    ]


def smallest_degree(shape: ModelShape) -> int:
    """The least tensor parallel degree above 1 that the model can be cut by; 1 if there is none."""
    degrees = range(2, _MAX_DEGREE + 1)
    return next((degree for degree in degrees if divides(shape, degree)), 1)


def _small(config: ServeConfig, shape: ModelShape) -> ServeConfig:
    """`config` with one graph of each kind, on this host alone."""
    length = min(_LENGTH, shape.max_model_len)
    buckets = BucketConfig(prefill=(length,), decode_batch=(_ROWS,), context=(length,))
    python = config.cluster.python
    return config.model_copy(
        update={
            "max_model_len": length, "max_num_seqs": _ROWS, "num_blocks": 0, "buckets": buckets,
            "artifacts": ArtifactConfig(), "recovery": RecoveryConfig(),
            "cluster": ClusterConfig(kind="local", python=python),
        }
    )  # fmt: skip


def _why_not(config: ServeConfig) -> str:
    if config.cluster.token_file or config.cluster.ray_address:
        return ""
    return (
        "neither cluster.token_file nor cluster.ray_address is set: set one, and run "
        "`rufus-serve follower` on the other hosts"
    )
