"""The platform that vLLM believes to run on: no device, an executor and a scheduler of ours."""

import itertools
from typing import Any

import torch
from vllm.exceptions import VLLMValidationError
from vllm.platforms.interface import Platform, PlatformEnum

from rufus_serve.errors import ConfigError, ModelError
from rufus_serve.leader.spec import config_of, read_spec
from rufus_serve.leader.token_rows import refusal

_EXECUTOR = "rufus_serve.leader.engine.executor.FollowerExecutor"
_SCHEDULERS = {
    True: "rufus_serve.leader.engine.scheduler.RecoveringAsyncScheduler",
    False: "rufus_serve.leader.engine.scheduler.RecoveringScheduler",
}


class FollowerPlatform(Platform):  # type: ignore[misc]
    """Out of tree on purpose: vLLM's CPU platform would call compiled kernels to sample."""

    _enum = PlatformEnum.OOT
    device_name = "followers"
    device_type = "cpu"
    dispatch_key = "CPU"
    dist_backend = "gloo"
    simple_compile_backend = "eager"
    _model_config: Any = None

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        """What followers compute in."""
        return [torch.bfloat16, torch.float32]

    @classmethod
    def get_device_name(cls, device_id: int = 0) -> str:  # noqa: ARG003 - vLLM's signature
        """Shown in vLLM's log."""
        return cls.device_name

    @classmethod
    def get_device_total_memory(cls, device_id: int = 0) -> int:  # noqa: ARG003
        """None of its own; followers report their blocks."""
        return 0

    @classmethod
    def is_pin_memory_available(cls) -> bool:
        """Nothing is copied to a device from here."""
        return False

    @classmethod
    def import_kernels(cls) -> None:
        """There are none."""

    @classmethod
    def import_ir_kernels(cls) -> None:
        """There are none."""

    @classmethod
    def inference_mode(cls) -> Any:
        """Sampling runs without gradients."""
        return torch.no_grad()

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """Put our executor and scheduler in; runs in both processes, so it is idempotent.

        Raises:
            ConfigError: an option asks for what followers cannot do.
            ModelError: the checkpoint does.
        """
        from vllm.config.compilation import CompilationMode, CUDAGraphMode

        _refuse_unsupported(vllm_config)
        cls._model_config = vllm_config.model_config
        config = config_of(read_spec())
        vllm_config.parallel_config.distributed_executor_backend = _EXECUTOR
        vllm_config.parallel_config.worker_cls = _EXECUTOR
        scheduler = vllm_config.scheduler_config
        scheduler.async_scheduling = config.async_scheduling
        scheduler.scheduler_cls = _SCHEDULERS[config.async_scheduling]
        _choose_one_grammar_backend(vllm_config.structured_outputs_config)
        compilation = vllm_config.compilation_config
        compilation.mode = CompilationMode.NONE
        compilation.cudagraph_mode = CUDAGraphMode.NONE

    @classmethod
    def validate_request(cls, processed_inputs: Any, params: Any) -> None:
        """Last check before the engine, whichever route the request came by.

        Raises:
            VLLMValidationError: answered as 400.
        """
        if processed_inputs.get("type") in ("embeds", "multimodal"):
            raise VLLMValidationError(
                "prompts of embeddings, images, audio or video are not supported",
                parameter="prompt",
            )
        _refuse_tokens_without_rows(cls._model_config, processed_inputs, params)


def _refuse_tokens_without_rows(model_config: Any, processed_inputs: Any, params: Any) -> None:
    """vLLM holds prompts and bad words against the tokenizer's vocabulary alone."""
    from vllm.tokenizers import cached_tokenizer_from_config

    vocab_size = model_config.get_vocab_size()
    found = {"prompt": processed_inputs.get("prompt_token_ids") or ()}
    if getattr(params, "bad_words", None) and not model_config.skip_tokenizer_init:
        checked = params.clone()
        checked.update_from_tokenizer(cached_tokenizer_from_config(model_config))
        found["bad_words"] = itertools.chain(*checked.bad_words_token_ids)
    for parameter, token_ids in found.items():
        reason = refusal(parameter, token_ids, vocab_size)
        if reason:
            raise VLLMValidationError(reason, parameter=parameter)


def _choose_one_grammar_backend(structured_outputs: Any) -> None:
    """Replace `auto`, which picks by request although the engine keeps the first pick for good.

    What another backend would accept then passes the request's check and fails in the engine.
    """
    if structured_outputs.backend == "auto":
        structured_outputs.backend = "xgrammar"


def _refuse_unsupported(vllm_config: Any) -> None:
    parallel, model = vllm_config.parallel_config, vllm_config.model_config
    if model.quantization is not None:
        raise ModelError(
            f"the checkpoint is quantized ({model.quantization}); "
            "use one with float32, float16 or bfloat16 weights"
        )
    if model.runner_type != "generate":
        raise ModelError(
            f"{model.architecture} is a {model.runner_type} model; only text generation is served"
        )
    if model.dtype not in (torch.bfloat16, torch.float32):
        raise ConfigError(f"dtype {model.dtype} is not supported; set dtype to bfloat16 or float32")
    sizes = {
        "tensor_parallel_size": parallel.tensor_parallel_size,
        "pipeline_parallel_size": parallel.pipeline_parallel_size,
        "data_parallel_size": parallel.data_parallel_size,
        "decode_context_parallel_size": parallel.decode_context_parallel_size,
    }
    for name, size in sizes.items():
        if size != 1:
            raise ConfigError(f"vllm_args.{name}={size} is not supported; use `nodes` instead")
    if not vllm_config.cache_config.cache_dtype.startswith(("auto", "bfloat16", "float32")):
        raise ConfigError(
            f"vllm_args.kv_cache_dtype={vllm_config.cache_config.cache_dtype} is not supported; "
            "the KV cache has the weights' format"
        )
    for name in ("lora_config", "kv_transfer_config", "ec_transfer_config"):
        if getattr(vllm_config, name) is not None:
            raise ConfigError(f"vllm_args: {name} is not supported")
