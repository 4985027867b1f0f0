"""The settings against the model: can it be divided so, and does each part fit?"""

from collections.abc import Iterator
from pathlib import Path

from rufus_serve.config.schema import ServeConfig
from rufus_serve.doctor.context import HostContext
from rufus_serve.doctor.finding import Finding, Findings
from rufus_serve.errors import ConfigError, ModelError
from rufus_serve.model.shape import ModelShape, read_model_shape
from rufus_serve.plan.hardware import INSTANCES, Instance, instance_named
from rufus_serve.plan.memory import WeightFormat
from rufus_serve.plan.plan import Plan, make_plan
from rufus_serve.plan.request import PlanRequest
from rufus_serve.plan.tensor_parallel import tensor_parallel
from rufus_serve.runtime.layouts.compiled_shape import CompiledShape
from rufus_serve.units import gib

DEFAULT_INSTANCE = "trn1.32xlarge"


def settings(context: HostContext) -> Iterator[Finding]:
    """Parallelism, lengths and memory of the group."""
    say = Findings("settings")
    shape = context.shape
    if shape is None:
        yield say.skipped("the model's config.json is no good")
        return
    limit = shape.max_model_len
    if context.config.max_model_len > limit:
        yield say.error(
            f"max_model_len {context.config.max_model_len} exceeds the model's {limit} positions",
            why="the model was not made for longer sequences",
            fix=f"set max_model_len to {limit} or less",
            code=ModelError.exit_code,
        )
        return
    yield from (_neuron if context.config.runtime == "neuron" else _cpu)(context, say, shape)


def _cpu(context: HostContext, say: Findings, shape: ModelShape) -> Iterator[Finding]:
    nodes, heads = context.config.nodes, shape.num_q_heads
    if nodes > heads:
        yield say.error(
            f"followers <= query heads must hold, but {nodes} > {heads}",
            why="each follower computes at least one head",
            fix=f"set nodes to {heads} or less",
            code=ModelError.exit_code,
        )
        return
    share = f"{nodes} followers share" if nodes > 1 else "one follower holds"
    yield say.ok(f"{share} {heads} query and {shape.num_kv_heads} KV heads")


def _neuron(context: HostContext, say: Findings, shape: ModelShape) -> Iterator[Finding]:
    neuron = context.config.neuron
    degree = context.config.nodes * neuron.cores_per_node
    try:
        if neuron.mode != "device":
            tensor_parallel(shape, degree, num_nodes=context.config.nodes)
            yield say.ok(f"tensor parallel degree {degree}, on the CPU")
            return
        plan = device_plan(context, shape)
    except (ConfigError, ModelError) as error:
        product = f"nodes {context.config.nodes} x neuron.cores_per_node {neuron.cores_per_node}"
        yield say.error(
            f"{product}: {error}",
            why="NxD Inference divides heads and columns evenly over all cores",
            fix=f"rufus-serve plan {context.config.model}; then set nodes and "
            "neuron.cores_per_node as it says",
            code=ConfigError.exit_code,
        )
        return
    on = f"{context.config.nodes} x {plan.instance.name}"
    if plan.fits:
        yield say.ok(
            f"tensor parallel degree {degree} on {on}: {gib(plan.memory.free)} free a core"
        )
        return
    yield say.error(
        f"each core of {on} is {gib(-plan.memory.free)} short for {context.config.max_num_seqs} "
        f"sequences of {plan.request.max_model_len} tokens",
        why="weights, KV cache and scratch are all in device memory",
        fix=f"rufus-serve plan {context.config.model}, which says what would fit; then set nodes, "
        "max_num_seqs or max_model_len",
        code=ModelError.exit_code,
    )


def device_plan(context: HostContext, shape: ModelShape) -> Plan:
    """The plan of `rufus-serve plan` for these settings, on this host's instance type.

    Raises:
        ConfigError: the hardware cannot do it; holds the equation.
    """
    config, instance = context.config, instance_of(context)
    length = CompiledShape.of(config, shape.max_model_len).max_model_len
    folder = config.speculation.draft_model
    return make_plan(
        PlanRequest(
            shape=shape,
            instance=instance,
            num_nodes=config.nodes,
            cores_per_node=config.neuron.cores_per_node,
            max_model_len=length,
            max_num_seqs=config.max_num_seqs,
            weights=_weight_format(config),
            prompt_tokens=min(2048, length),
            cp_degree=config.neuron.cp_degree,
            attention_dp_degree=config.neuron.attention_dp_degree,
            draft=read_model_shape(Path(folder)) if folder else None,
            draft_model=folder,
        )
    )


def _weight_format(config: ServeConfig) -> WeightFormat:
    if config.weights == "int8":
        return "int8"
    return "float32" if config.dtype == "float32" else "bfloat16"


def instance_of(context: HostContext) -> Instance:
    """This host's instance type, or trn1.32xlarge if it is none that plans are made for."""
    known = context.instance_type in [instance.name for instance in INSTANCES]
    return instance_named(context.instance_type if known else DEFAULT_INSTANCE)


def api_keys(context: HostContext) -> Iterator[Finding]:
    """The file of API keys."""
    say = Findings("api keys")
    path = context.config.api_key_file
    if path is None or not context.placement.is_leader:
        yield say.skipped("api_key_file is not set" if path is None else "the leader has them")
    elif context.system.read(str(path)):
        yield say.ok(f"{path} can be read")
    else:
        yield say.error(
            f"api_key_file {path} is empty or cannot be read",
            why="no request could be let in",
            fix=f"(umask 077; openssl rand -hex 32 > {path})",
            code=ConfigError.exit_code,
        )
