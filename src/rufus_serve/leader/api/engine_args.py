"""From our configuration to vLLM's arguments; says no to what followers cannot do."""

import difflib
import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from rufus_serve.config import ServeConfig
from rufus_serve.errors import ConfigError
from rufus_serve.leader.api.generation_defaults import greedy_defaults, replaced_defaults
from rufus_serve.model.folder import model_name

OURS = {
    "model": "model", "served_model_name": "served_model_name", "host": "host", "port": "port",
    "uds": "host", "api_key": "api_key_file", "dtype": "dtype", "max_model_len": "max_model_len",
    "max_num_seqs": "max_num_seqs", "block_size": "block_size",
    "num_gpu_blocks_override": "num_blocks", "gpu_memory_utilization": "cpu.kv_cache_gib",
    "kv_cache_memory_bytes": "cpu.kv_cache_gib", "enable_prefix_caching": "prefix_caching",
    "speculative_config": "speculation", "spec_method": "speculation.method",
    "spec_model": "speculation.draft_model",
    "spec_tokens": "speculation.num_speculative_tokens",
    "async_scheduling": "async_scheduling", "tensor_parallel_size": "nodes",
    "pipeline_parallel_size": "nodes", "distributed_executor_backend": "cluster.kind",
    "max_num_batched_tokens": "buckets.prefill", "enable_chunked_prefill": "buckets.prefill",
    "uvicorn_log_level": "log_level", "max_num_queued_reqs": "limits.max_waiting",
    "shutdown_timeout": "timeouts.shutdown_grace_s", "load_format": "model",
    "scheduler_cls": "async_scheduling", "worker_cls": "runtime", "middleware": "limits",
    "allowed_origins": "http.cors_origins", "allowed_methods": "http.cors_origins",
    "allowed_headers": "http.cors_origins", "allow_credentials": "http.cors_origins",
    "disable_fastapi_docs": "http.docs", "enable_offline_docs": "http.docs",
    "enable_request_id_headers": "http.audit_log", "ssl_keyfile": "http.tls_key",
    "ssl_certfile": "http.tls_certificate", "ssl_ca_certs": "http.tls_client_ca",
}  # fmt: skip
"""vLLM options that a setting of ours decides: vLLM's name to ours."""

UNSUPPORTED = {
    "quantization": "followers hold unquantized weights",
    "quantization_config": "followers hold unquantized weights",
    "kv_cache_dtype": "the KV cache has the weights' format",
    "enable_lora": "followers hold no adapters",
    "lora_modules": "followers hold no adapters",
    "default_mm_loras": "followers hold no adapters",
    "enable_prompt_embeds": "followers take token ids only",
    "enable_mm_embeds": "followers take token ids only",
    "mm_processor_kwargs": "only text is served",
    "runner": "only text generation is served",
    "convert": "only text generation is served",
    "pooler_config": "only text generation is served",
    "kv_transfer_config": "the KV cache stays in the followers",
    "ec_transfer_config": "the KV cache stays in the followers",
    "kv_offloading_size": "the KV cache stays in the followers",
    "cpu_offload_gb": "followers hold all weights",
    "enable_sleep_mode": "followers keep their weights",
    "hf_token": "the model is read from its folder, and needs none",
    "root_path": "strip a prefix in the proxy in front",
    "headless": "the supervisor starts all processes",
    "api_server_count": "one API process serves all groups",
    "grpc_port": "only HTTP is served",
    "enable_fault_tolerance": "the supervisor restarts followers",
}
_UNSUPPORTED_PREFIXES = {
    "data_parallel": "the setting `groups` has several groups of followers behind one endpoint",
    "decode_context_parallel": "followers decide how a context is split",
    "prefill_context_parallel": "followers decide how a context is split",
    "expert_parallel": "followers decide how experts are split",
    "enable_expert_parallel": "followers decide how experts are split",
    "ssl_": "http.tls_certificate and its siblings are all that TLS can be told",
}


def vllm_namespace(config: ServeConfig) -> Namespace:
    """What vLLM's own command line would have made of `config`.

    Raises:
        ConfigError: vllm_args has an option that vLLM does not know, that another setting
            decides, or that followers cannot honour.
    """
    from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.exceptions import VLLMError

    from rufus_serve.leader.api import tool_choice

    parser = make_arg_parser(_parser_class()())
    actions = {action.dest: action for action in parser._actions}  # noqa: SLF001 - no public list
    extra = {name.replace("-", "_"): value for name, value in config.vllm_args.items()}
    for name, value in extra.items():
        check_option(name, value, known=set(actions))
    if "tool_call_parser" not in extra:
        tool_choice.register()
        extra |= {"tool_call_parser": tool_choice.NAME, "enable_auto_tool_choice": True}
    words = [word for name, value in extra.items() for word in words_of(actions[name], value)]
    args: Namespace = parser.parse_args([*_own_words(config), *words])
    _check_parsers(args)
    try:
        validate_parsed_serve_args(args)
    except (TypeError, ValueError, KeyError, VLLMError) as error:
        raise ConfigError(f"vllm_args: {error}") from error
    return args


def check_option(name: str, value: object, *, known: set[str]) -> None:
    """Refuse a vllm_args entry, by name, before vLLM sees it.

    Raises:
        ConfigError: naming the setting to use, the reason, or the nearest known option.
    """
    if name in OURS:
        raise ConfigError(f"vllm_args.{name} is decided by the setting `{OURS[name]}`; set that")
    reasons = [why for prefix, why in _UNSUPPORTED_PREFIXES.items() if name.startswith(prefix)]
    reason = UNSUPPORTED.get(name) or next(iter(reasons), None)
    if reason and value not in (None, False, "auto"):
        shown = "" if "token" in name else f"={value!r}"
        raise ConfigError(f"vllm_args.{name}{shown} is not supported: {reason}")
    if name not in known:
        nearest = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.0)
        raise ConfigError(f"vllm_args.{name} is no option of vLLM; did you mean {nearest[0]}?")


def served_name(config: ServeConfig) -> str:
    """The model's name in the API."""
    return config.served_model_name or model_name(Path(config.model))


def _own_words(config: ServeConfig) -> Iterator[str]:
    verbose = config.log_level == "DEBUG"
    yield from ("--model", config.model, "--served-model-name", served_name(config))
    yield from ("--host", config.host, "--port", str(config.port))
    yield from ("--dtype", config.dtype, "--max-num-seqs", str(config.max_num_seqs))
    yield from ("--block-size", str(config.block_size))
    yield "--enable-prefix-caching" if config.prefix_caching else "--no-enable-prefix-caching"
    yield "--async-scheduling" if config.async_scheduling else "--no-async-scheduling"
    if config.num_speculative_tokens:
        yield from ("--speculative-config", json.dumps(_speculation(config)))
    if "scheduling_policy" not in config.vllm_args and config.api_key_file:
        yield from ("--scheduling-policy", "priority")
    if "structured_outputs_config" not in config.vllm_args:
        # vLLM's `auto` takes the backend of the first request, and fails those of another.
        yield from ("--structured-outputs-config", '{"backend": "xgrammar"}')
    if not config.vllm_args.keys() & {"generation_config", "override_generation_config"}:
        is_fused = config.speculation.is_fused
        defaults = greedy_defaults() if is_fused else replaced_defaults(Path(config.model))
        yield from ("--override-generation-config", json.dumps(defaults))
    yield from ("--allowed-origins", "[]")
    yield from ("--max-num-batched-tokens", str(max(config.max_num_seqs, *config.buckets.prefill)))
    yield from ("--uvicorn-log-level", "info" if verbose else "warning")
    if not verbose:
        yield "--disable-uvicorn-access-log"
    if config.max_model_len:
        yield from ("--max-model-len", str(config.max_model_len))


def _speculation(config: ServeConfig) -> dict[str, Any]:
    # By this name vLLM's asynchronous scheduler keeps places for drafts; it makes none itself.
    return config.speculation.model_dump(exclude={"draft_model"}) | {"method": "ngram_gpu"}


def words_of(action: Any, value: object) -> list[str]:
    """`value` of a YAML file as command line words for `action`."""
    flag = max(action.option_strings, key=len)
    if isinstance(value, bool) and action.nargs == 0:
        opposites = ("--no-",) if action.dest.startswith("disable") else ("--no-", "--disable-")
        plain = [text for text in action.option_strings if not text.startswith(opposites)]
        negated = [text for text in action.option_strings if text.startswith(opposites)]
        return [plain[-1]] if value else negated[-1:]
    if value is None:
        return []
    if isinstance(value, list) and action.nargs in ("+", "*"):
        return [flag, *(item if isinstance(item, str) else json.dumps(item) for item in value)]
    return [flag, value if isinstance(value, str) else json.dumps(value)]


def _parser_class() -> type[Any]:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        """vLLM's parser that raises instead of printing usage and exiting."""

        def error(self, message: str) -> NoReturn:
            """Raise ConfigError."""
            raise ConfigError(f"vllm_args: {message}")

    return Parser


def _check_parsers(args: Namespace) -> None:
    from vllm.entrypoints.launchers.launcher import validate_api_server_args

    try:
        validate_api_server_args(args)
    except KeyError as error:
        raise ConfigError(f"vllm_args: {error.args[0]}") from error
