"""Checks that span several settings; each failure shows the equation that does not hold."""

import ipaddress
from collections.abc import Iterator
from typing import NamedTuple

from rufus_serve.config.ports import clashes
from rufus_serve.config.schema import ServeConfig


class Conflict(NamedTuple):
    """Settings that cannot hold together."""

    message: str
    keys: tuple[str, ...]
    """The settings it is about, for telling where they came from."""


def conflicts(config: ServeConfig) -> list[Conflict]:
    """Everything in `config` that cannot work, whatever the model is."""
    found = [*_buckets(config), *_blocks(config), *_deadlines(config), *_artifacts(config)]
    found += [*_endpoint(config), *_speculation(config)]
    if config.cluster.token_file or config.cluster.ray_address:
        found += [Conflict(*clash) for clash in clashes(config)]
    if config.runtime == "neuron":
        found += _neuron_degrees(config)
    if config.is_neuron_shaped:
        found += _neuron_prefill(config)
    return found


def _buckets(config: ServeConfig) -> Iterator[Conflict]:
    buckets, length = config.buckets, config.max_model_len
    if length and buckets.context and buckets.context[-1] < length:
        yield Conflict(
            f"largest buckets.context {buckets.context[-1]} < max_model_len {length}: no compiled "
            f"shape holds a full sequence; add {length} to buckets.context or lower max_model_len",
            ("buckets.context", "max_model_len"),
        )
    if buckets.decode_batch and buckets.decode_batch[-1] < config.max_num_seqs:
        yield Conflict(
            f"largest buckets.decode_batch {buckets.decode_batch[-1]} < max_num_seqs "
            f"{config.max_num_seqs}: add {config.max_num_seqs} or lower max_num_seqs",
            ("buckets.decode_batch", "max_num_seqs"),
        )
    ragged = [size for size in buckets.context if size % config.block_size]
    if ragged and not config.has_kv_lines:
        yield Conflict(
            f"buckets.context {ragged[0]} % block_size {config.block_size} = "
            f"{ragged[0] % config.block_size}, must be 0: contexts are read in whole blocks",
            ("buckets.context", "block_size"),
        )


def _blocks(config: ServeConfig) -> Iterator[Conflict]:
    if not config.num_blocks or not config.max_model_len or config.has_kv_lines:
        return
    needed = -(-config.max_model_len // config.block_size) + 1
    if config.num_blocks < needed:
        yield Conflict(
            f"num_blocks {config.num_blocks} < {needed} = ceil(max_model_len "
            f"{config.max_model_len} / block_size {config.block_size}) + 1 null block: "
            "one full sequence would not fit",
            ("num_blocks", "max_model_len", "block_size"),
        )


def _deadlines(config: ServeConfig) -> Iterator[Conflict]:
    timeouts, recovery = config.timeouts, config.recovery
    if timeouts.heartbeat_lost_s < 2 * timeouts.heartbeat_s:
        yield Conflict(
            f"timeouts.heartbeat_lost_s {timeouts.heartbeat_lost_s:g} < 2 x timeouts.heartbeat_s "
            f"{timeouts.heartbeat_s:g}: one late heartbeat would count as a loss",
            ("timeouts.heartbeat_lost_s", "timeouts.heartbeat_s"),
        )
    if config.runtime == "neuron" and config.recovery_deadline_s < _loading_s(config):
        yield Conflict(
            f"recovery.deadline_s {recovery.deadline_s:g} < timeouts.load_s {timeouts.load_s:g} + "
            f"timeouts.warm_up_s {timeouts.warm_up_s:g}: with runtime neuron every follower loads "
            "again after a loss, and the server would be killed for it; raise deadline_s, or 0 "
            "takes what the limits add up to",
            ("recovery.deadline_s", "timeouts.load_s", "timeouts.warm_up_s"),
        )
    if recovery.max_backoff_s < recovery.backoff_s:
        yield Conflict(
            f"recovery.max_backoff_s {recovery.max_backoff_s:g} < recovery.backoff_s "
            f"{recovery.backoff_s:g}: the upper bound is below the first wait",
            ("recovery.max_backoff_s", "recovery.backoff_s"),
        )


def _loading_s(config: ServeConfig) -> float:
    return config.timeouts.load_s + config.timeouts.warm_up_s


def _neuron_degrees(config: ServeConfig) -> Iterator[Conflict]:
    """Rules of NxD Inference's NeuronConfig for context and attention data parallelism."""
    neuron = config.neuron
    degree = config.nodes * neuron.cores_per_node
    product = f"tensor parallel degree {degree} (nodes {config.nodes} x cores_per_node "
    product += f"{neuron.cores_per_node})"
    cp, dp = neuron.cp_degree, neuron.attention_dp_degree
    size_keys = ("nodes", "neuron.cores_per_node")
    if degree % cp:
        yield Conflict(
            f"{product} % neuron.cp_degree {cp} = {degree % cp}, must be 0",
            (*size_keys, "neuron.cp_degree"),
        )
    if degree % dp:
        yield Conflict(
            f"{product} % neuron.attention_dp_degree {dp} = {degree % dp}, must be 0",
            (*size_keys, "neuron.attention_dp_degree"),
        )
    if cp > 1 and cp % dp:
        yield Conflict(
            f"neuron.cp_degree {cp} % neuron.attention_dp_degree {dp} = {cp % dp}, must be 0: "
            "context parallelism, if there is any, is at least as wide as attention data "
            "parallelism, and a multiple of it",
            ("neuron.cp_degree", "neuron.attention_dp_degree"),
        )
    yield from _placed_as_on_trn2(config, degree)
    if dp > 1 and neuron.kv_layout == "block":
        yield Conflict(
            f"neuron.attention_dp_degree {dp} with neuron.kv_layout block: NxD Inference 0.8 "
            "would keep KV lines and ignore the block tables; set kv_layout to contiguous",
            ("neuron.attention_dp_degree", "neuron.kv_layout"),
        )
    yield from _quantized(config)
    yield from _decode_batches(config, dp)
    yield from _prompts_cut(config, cp, degree)


def _placed_as_on_trn2(config: ServeConfig, degree: int) -> Iterator[Conflict]:
    neuron = config.neuron
    degrees = {"cp_degree": neuron.cp_degree, "attention_dp_degree": neuron.attention_dp_degree}
    for name, value in degrees.items():
        if neuron.mode == "device" and (value, degree) == (8, 64):
            yield Conflict(
                f"neuron.{name} 8 at tensor parallel degree 64: NxD Inference 0.8 places such "
                "groups on Trn2's mesh, which Trn1 does not have; use 2, 4 or 16",
                ("nodes", "neuron.cores_per_node", f"neuron.{name}"),
            )


def _quantized(config: ServeConfig) -> Iterator[Conflict]:
    if config.weights != "int8":
        return
    neuron = config.neuron
    for name, degree in (
        ("cp_degree", neuron.cp_degree), ("attention_dp_degree", neuron.attention_dp_degree)
    ):  # fmt: skip
        if degree > 1:
            yield Conflict(
                f"weights int8 with neuron.{name} {degree}: NxD Inference 0.8 drops the order of "
                "ranks when it quantizes a layer, and would cut attention wrongly; use one of them",
                ("weights", f"neuron.{name}"),
            )
    if neuron.neuron_config.get("save_sharded_checkpoint") is False:
        yield Conflict(
            "weights int8 with neuron_config.save_sharded_checkpoint false: the quantized "
            "checkpoint is kept as shards only; leave it out",
            ("weights", "neuron.neuron_config"),
        )
    if neuron.mode == "nxdi-cpu" and config.dtype == "bfloat16":
        yield Conflict(
            "weights int8 and dtype bfloat16 with neuron.mode nxdi-cpu: NxD Inference's CPU mode "
            "would round the scales to bfloat16; set dtype to float32",
            ("weights", "dtype", "neuron.mode"),
        )


def _decode_batches(config: ServeConfig, dp: int) -> Iterator[Conflict]:
    for key, rows in (
        ("max_num_seqs", (config.max_num_seqs,)),
        ("buckets.decode_batch", config.buckets.decode_batch),
    ):
        uneven = [size for size in rows if size % dp]
        if uneven:
            yield Conflict(
                f"{key} {uneven[0]} % neuron.attention_dp_degree {dp} = {uneven[0] % dp}, "
                "must be 0: decode rows are divided evenly among the attention groups",
                (key, "neuron.attention_dp_degree"),
            )


def _prompts_cut(config: ServeConfig, cp: int, degree: int) -> Iterator[Conflict]:
    """Prefill buckets whose tokens are divided among ranks."""
    cuts = [("neuron.cp_degree", cp)]
    if config.neuron.neuron_config.get("sequence_parallel_enabled"):
        cuts.append(("tensor parallel degree (neuron_config.sequence_parallel_enabled)", degree))
    for name, parts in cuts:
        uneven = [size for size in config.buckets.prefill if size % parts]
        if uneven:
            yield Conflict(
                f"buckets.prefill {uneven[0]} % {name} {parts} = {uneven[0] % parts}, must be 0: "
                "a prompt's tokens are divided evenly among the ranks",
                ("buckets.prefill", name.split(" ")[0]),
            )


def _neuron_prefill(config: ServeConfig) -> Iterator[Conflict]:
    largest, length = config.buckets.prefill[-1], config.max_model_len
    if config.has_kv_lines and length and largest < length:
        yield Conflict(
            f"largest buckets.prefill {largest} < max_model_len {length}: the contiguous KV layout "
            "prefills a prompt, or a request resumed after a loss, in one step; "
            f"add {length} to buckets.prefill or lower max_model_len",
            ("buckets.prefill", "max_model_len"),
        )


def _endpoint(config: ServeConfig) -> Iterator[Conflict]:
    http = config.http
    if not (is_loopback(config.host) or config.api_key_file or config.allow_anonymous):
        yield Conflict(
            f"host {config.host} is reached from other machines and api_key_file is empty: name a "
            "key file (`rufus-serve key add` makes one), or set allow_anonymous "
            "(--allow-anonymous) for an endpoint that anyone who reaches it may use",
            ("host", "api_key_file"),
        )
    if not http.tls_certificate and (http.tls_key or http.tls_client_ca):
        yield Conflict(
            "http.tls_key or http.tls_client_ca is set but http.tls_certificate is empty: "
            "name the server's certificate",
            ("http.tls_certificate", "http.tls_key", "http.tls_client_ca"),
        )


def _speculation(config: ServeConfig) -> Iterator[Conflict]:
    speculation = config.speculation
    if speculation.draft_model and not speculation.is_fused:
        yield Conflict(
            f"speculation.draft_model with speculation.method {speculation.method}: only methods "
            "fused and eagle have a draft model; set one of them, or leave draft_model empty",
            ("speculation.draft_model", "speculation.method"),
        )
    if speculation.method == "none":
        return
    if speculation.prompt_lookup_min > speculation.prompt_lookup_max:
        yield Conflict(
            f"speculation.prompt_lookup_min {speculation.prompt_lookup_min} > "
            f"speculation.prompt_lookup_max {speculation.prompt_lookup_max}",
            ("speculation.prompt_lookup_min", "speculation.prompt_lookup_max"),
        )
    if not config.async_scheduling:
        yield Conflict(
            f"speculation.method {speculation.method} with async_scheduling false: drafts fill "
            "places that the asynchronous scheduler keeps free for them; leave async_scheduling on",
            ("speculation.method", "async_scheduling"),
        )
    if speculation.is_fused:
        yield from _fused_speculation(config)
    elif config.is_neuron_shaped and not config.has_kv_lines:
        yield Conflict(
            f"speculation.method {speculation.method} with neuron.kv_layout block: NxD Inference "
            "0.8 has no decode of several tokens with block tables; set kv_layout to contiguous",
            ("speculation.method", "neuron.kv_layout"),
        )


def _fused_speculation(config: ServeConfig) -> Iterator[Conflict]:
    method, neuron = f"speculation.method {config.speculation.method}", config.neuron
    if not config.speculation.draft_model:
        yield Conflict(
            f"{method} without speculation.draft_model: name the folder of the draft's checkpoint",
            ("speculation.method", "speculation.draft_model"),
        )
    excluded = (
        (config.runtime != "neuron", "runtime",
         "the graphs that draft and choose tokens are NxD Inference's; use runtime neuron, or "
         "method ngram"),
        (neuron.kv_layout == "block", "neuron.kv_layout",
         "a fused decode over block tables is not offered; set it to contiguous"),
        (neuron.device_candidates > 0, "neuron.device_candidates",
         "its graphs choose tokens, and bring no candidates; set it to 0"),
        (neuron.cp_degree > 1, "neuron.cp_degree",
         "the draft's attention would be cut in the same groups, which is not supported; use 1"),
        (neuron.attention_dp_degree > 1, "neuron.attention_dp_degree",
         "the draft's attention would be cut in the same groups, which is not supported; use 1"),
        (config.weights == "int8", "weights",
         "the draft would need a quantized checkpoint of its own; set weights to auto"),
        (bool(config.vllm_args.get("logits_processors")), "vllm_args",
         "logits_processors would see no logits; leave them out"),
    )  # fmt: skip
    for is_set, key, why in excluded:
        if is_set:
            yield Conflict(f"{method} with {key}: {why}", ("speculation.method", key))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _artifacts(config: ServeConfig) -> Iterator[Conflict]:
    if config.artifacts.required and not config.artifacts.location:
        yield Conflict(
            "artifacts.required is true but artifacts.location is empty: "
            "name the folder or URL that 'rufus-serve compile' wrote",
            ("artifacts.required", "artifacts.location"),
        )
