"""All that depends on vLLM's internals of version 0.33; imported only once vLLM is wanted.

Each function names what it stands in for, so that a new vLLM version is met here alone.
"""

import copy
import dataclasses
import itertools
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
import xgrammar
from vllm import envs
from vllm.outputs import RequestError
from vllm.v1.engine import FinishReason
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import (
    EMPTY_MODEL_RUNNER_OUTPUT,
    LogprobsLists,
    LogprobsTensors,
    ModelRunnerOutput,
)
from vllm.v1.request import RequestStatus
from vllm.v1.sample.logits_processor import build_logitsprocs
from vllm.v1.sample.sampler import Sampler
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend
from vllm.v1.structured_output.utils import apply_grammar_bitmask
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from rufus_serve.leader.engine.candidate_sampler import Logprobs
from rufus_serve.leader.engine.masks import GrammarMasks
from rufus_serve.leader.engine.shared import Engine
from rufus_serve.leader.engine.truncation import TruncatedSampler
from rufus_serve.protocol.messages import PromptScores, RuntimeInfo

__all__ = ["EMPTY_MODEL_RUNNER_OUTPUT", "StepLost"]

_CPU = torch.device("cpu")
_LEAST_PRIORITY = 19
_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclasses.dataclass
class StepTokens(ModelRunnerOutput):  # type: ignore[misc]
    """The output of a step, and how many drafts its rows had."""

    num_drafts: Mapping[str, int] = dataclasses.field(default_factory=dict)


class StepLost(ModelRunnerOutput):  # type: ignore[misc]
    """Stands for the output of a step whose group was lost before it was sampled."""

    refused: tuple[str, ...] = ()
    """Requests of the step that a runtime refused, if that is why."""
    reason: str = ""


def lost_step() -> StepLost:
    """A marker that the scheduler takes for a lost step."""
    return StepLost(req_ids=[], req_id_to_index={})


def fail_request(scheduler: Any, req_id: str, message: str) -> None:
    """Have the scheduler's next update end a request with an error of its own.

    vLLM keeps these errors for grammars that do not compile, and sends them on as any.
    """
    scheduler.grammar_compile_error_reqs[req_id] = RequestError("runtime_refused", message)


def watch_grammars(structured_outputs: Any) -> list[Any]:
    """A list that takes in each Request whose grammar does not take a token that was drawn."""
    rejecting: list[Any] = []
    accept = structured_outputs.accept_tokens

    def accept_tokens(request: Any, token_ids: list[int]) -> bool:
        accepts: bool = accept(request, token_ids)
        if not accepts:
            rejecting.append(request)
        return accepts

    structured_outputs.accept_tokens = accept_tokens
    return rejecting


def blame_parameters(outputs: Mapping[int, Any], rejecting: Sequence[Any]) -> None:
    """Say why in the outputs of requests whose parameters forbid all that their grammars allow.

    A token that was drawn though none may come is refused by the grammar; to vLLM that is an
    internal error.
    """
    names = {
        request.request_id: name
        for request in rejecting
        for name in ("allowed_token_ids", "bad_words")
        if getattr(request.sampling_params, name)
    }
    for output in (each for of_client in outputs.values() for each in of_client.outputs):
        if output.request_id in names and output.finish_reason == FinishReason.ERROR:
            output.error = RequestError(
                "validation_error",
                f"no token is left to go on with: {names[output.request_id]} forbids all that the "
                "request's grammar (structured_outputs, response_format or a tool) allows",
            )


def tell_drafts(scheduler_output: Any, output: Any) -> None:
    """Have the scheduler's statistics count the drafts that a step had, not the places for them.

    It keeps places for the most drafts behind every running request; those of which a grammar
    refused tokens it counts in `SchedulerOutput.num_invalid_spec_tokens`.
    """
    num_drafts = getattr(output, "num_drafts", {})
    scheduler_output.num_invalid_spec_tokens = {
        req_id: len(places) - num_drafts.get(req_id, 0)
        for req_id, places in scheduler_output.scheduled_spec_decode_tokens.items()
    }


def without_speculation(vllm_config: Any) -> Any:
    """`vllm_config` for what samples single tokens.

    `build_logitsprocs` leaves min-p and logit biases out where drafts are verified by vLLM.
    """
    config = copy.copy(vllm_config)
    config.speculative_config = None
    return config


def make_input_batch(vllm_config: Any, *, vocab_size: int, block_size: int) -> Any:
    """The batch as vLLM's model runner V1 keeps it, on the CPU."""
    scheduler = vllm_config.scheduler_config
    max_model_len = vllm_config.model_config.max_model_len
    custom = vllm_config.model_config.logits_processors or ()
    return InputBatch(
        max_num_reqs=scheduler.max_num_seqs,
        max_model_len=max_model_len,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        device=_CPU,
        vocab_size=vocab_size,
        block_sizes=[block_size],
        max_num_blocks_per_req=[-(-max_model_len // block_size) + 1],
        logitsprocs=build_logitsprocs(without_speculation(vllm_config), _CPU, False, False, custom),
        logitsprocs_need_output_token_ids=bool(custom),
        reasoning_config=vllm_config.reasoning_config,
    )


def calm_grammar_compilation(structured_outputs: Any) -> None:
    """Compile grammars on one thread that gives way to all others.

    vLLM's XgrammarBackend uses eight threads for each, and StructuredOutputManager several at a
    time, while the running requests' steps wait for the cores.
    """
    structured_outputs.executor = ThreadPoolExecutor(1, "grammar", initializer=_give_way)
    XgrammarBackend._create_compiler = staticmethod(_one_threaded_compiler)  # noqa: SLF001


def _give_way() -> None:
    # On Linux a priority is a thread's own.
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LEAST_PRIORITY)


def _one_threaded_compiler(vocabulary: Any) -> Any:
    limit_bytes = envs.VLLM_XGRAMMAR_CACHE_MB << 20
    return xgrammar.GrammarCompiler(vocabulary, max_threads=1, cache_limit_bytes=limit_bytes)


def request_state(new: Any) -> Any:
    """The state that vLLM's model runner V1 keeps of a request, from a NewRequestData."""
    return CachedRequestState(
        req_id=new.req_id,
        prompt_token_ids=new.prompt_token_ids,
        mm_features=[],
        sampling_params=new.sampling_params,
        # Seeds are used by position, see `dice`; a generator would remember what was drawn.
        generator=None,
        block_ids=new.block_ids,
        num_computed_tokens=new.num_computed_tokens,
        output_token_ids=_delivered(new),
    )


def enter_delivered(request: Any, token_ids: Sequence[int]) -> None:
    """Give a Request that no scheduler has seen the output tokens of an earlier engine.

    Numbers of the first prefill went to the front end with them, and the prefix cache's
    statistics count it as preempted: what is cached may reach beyond the prompt.
    """
    request.append_output_token_ids(list(token_ids))
    request.prefill_stats = None
    request.num_preemptions = 1


def tell_delivered(output: Any, requests: Mapping[str, Any]) -> None:
    """Let `request_state` know of output tokens that new requests came with.

    They travel in `NewRequestData.prefill_token_ids`, which vLLM's model runner V1 does not use.
    """
    for new in output.scheduled_new_reqs:
        request = requests[new.req_id]
        if request.num_output_tokens:
            new.prefill_token_ids = list(request.all_token_ids)


def _delivered(new: Any) -> list[int]:
    if new.prefill_token_ids is None:
        return []
    token_ids: list[int] = new.prefill_token_ids[len(new.prompt_token_ids) :]
    return token_ids


def awaits_grammar(request: Any) -> bool:
    """Whether a Request waits for its grammar to be compiled."""
    return bool(request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR)


def grammar_error() -> Any:
    """For a request whose delivered tokens its own grammar does not take."""
    return RequestError(code="engine_died", message="the tokens sent so far break the grammar")


def make_sampler(vllm_config: Any) -> Any:
    """vLLM's sampler in the configured logprobs mode, spared from sorting vocabularies."""
    sampler = Sampler(logprobs_mode=vllm_config.model_config.logprobs_mode)
    sampler.topk_topp_sampler = TruncatedSampler(sampler.topk_topp_sampler)
    return sampler


def needs_whole_rows(vllm_config: Any) -> bool:
    """Whether every request needs vLLM's own sampler, from the server's configuration."""
    model = vllm_config.model_config
    return bool(model.logits_processors) or model.logprobs_mode != "raw_logprobs"


def sample_whole_rows(
    sampler: Any, logits: Any, metadata: Any, uniforms: Any
) -> tuple[list[int], Any]:
    """Tokens of `logits` [R, V] as vLLM draws them by `uniforms` [R], and their LogprobsLists."""
    sampler.topk_topp_sampler.uniforms = uniforms
    output = sampler(logits, metadata)
    logprobs = output.logprobs_tensors
    token_ids: list[int] = output.sampled_token_ids[:, 0].tolist()
    return token_ids, None if logprobs is None else logprobs.tolists()


def logprobs_lists(batch: Sequence[Sequence[Logprobs | None]]) -> LogprobsLists | None:
    """The logprobs of a batch's tokens, row by row, as vLLM hands them on; None if none has any."""
    rows = [each for row in batch for each in row]
    width = max((len(row.ids) for row in rows if row is not None), default=0)
    if not width:
        return None
    ids = np.zeros((len(rows), width), np.int32)
    logprobs = np.full((len(rows), width), -np.inf, np.float32)
    ranks = np.zeros(len(rows), np.int64)
    for place, row in enumerate(rows):
        if row is not None:
            ids[place, : len(row.ids)] = row.ids
            logprobs[place, : len(row.ids)] = row.logprobs
            ranks[place] = row.rank
    ends = itertools.accumulate((len(row) for row in batch), initial=0)
    return LogprobsLists(ids, logprobs, ranks, list(ends))


def grammar_masks(grammar_output: Any) -> GrammarMasks:
    """Of each request with a grammar what it allows next."""
    if grammar_output is None:
        return GrammarMasks(np.zeros((0, 0), np.int32), {})
    req_ids = grammar_output.structured_output_request_ids
    masks = grammar_output.grammar_bitmask
    if len(masks) != len(req_ids):
        raise ValueError(f"{len(masks)} bitmasks of {len(req_ids)} requests")
    return GrammarMasks(masks, {req_id: place for place, req_id in enumerate(req_ids)})


def own_bitmask(grammar_output: Any) -> Any:
    """`grammar_output` with a bitmask of its own, of each request's next token; None stays None.

    `StructuredOutputManager.grammar_bitmask` returns a view of one buffer, which the next
    step's masks overwrite while this step still waits to be sampled. With speculation it has
    masks for the places of drafts too.
    """
    if grammar_output is None:
        return None
    masks = grammar_output.grammar_bitmask
    stride = len(masks) // len(grammar_output.structured_output_request_ids)
    return dataclasses.replace(grammar_output, grammar_bitmask=masks[::stride].copy())


def apply_grammar(scheduler_output: Any, grammar_output: Any, batch: Any, logits: Any) -> None:
    """Forbid the tokens that structured output rules out, in place, of rows without drafts."""
    single = copy.copy(scheduler_output)
    single.scheduled_spec_decode_tokens = {}
    apply_grammar_bitmask(single, grammar_output, batch, logits)


def runner_output(
    req_ids: Sequence[str],
    token_ids: Sequence[list[int]],
    logprobs: Any,
    *,
    still_prefilling: Sequence[str],
    num_drafts: Mapping[str, int],
    prompt_logprobs: Mapping[str, LogprobsTensors],
) -> Any:
    """What a model runner returns of a step: each row's tokens, none for unfinished prompts.

    `prompt_logprobs` are of prompts that the step finished.
    """
    everyone = [*req_ids, *still_prefilling]
    return StepTokens(
        req_ids=everyone,
        req_id_to_index={req_id: index for index, req_id in enumerate(everyone)},
        sampled_token_ids=[*token_ids, *([] for _ in still_prefilling)],
        logprobs=logprobs,
        num_drafts=num_drafts,
        prompt_logprobs_dict=dict(prompt_logprobs),
    )


def prompt_logprobs(scores: PromptScores, vllm_config: Any) -> LogprobsTensors:
    """A prompt's scores in the configured logprobs mode, as vLLM hands them on."""
    values = scores.logits
    if not vllm_config.model_config.logprobs_mode.endswith("_logits"):
        values = (values - scores.log_totals[:, np.newaxis]).astype(np.float32)
    arrays = (scores.ids, values, scores.ranks)
    return LogprobsTensors(*(torch.from_numpy(array) for array in arrays))


def kv_cache_specs(info: RuntimeInfo) -> dict[str, Any]:
    """One attention layer spec per layer; vLLM counts blocks by them and allocates nothing."""
    return {
        f"layers.{index}": FullAttentionSpec(
            block_size=info.block_size,
            num_kv_heads=info.num_kv_heads,
            head_size=info.head_size,
            dtype=_DTYPES.get(info.dtype, torch.float32),
        )
        for index in range(info.num_layers)
    }


def kv_cache_bytes(specs: dict[str, Any], num_blocks: int) -> int:
    """Memory from which vLLM derives exactly `num_blocks`."""
    block_bytes = sum(int(spec.page_size_bytes) for spec in specs.values())
    return num_blocks * block_bytes


def attach_engine(vllm_config: Any, engine: Engine) -> None:
    """Leave `engine` where the scheduler, made later from the same object, finds it."""
    vllm_config.rufus_engine = engine


def engine_of(vllm_config: Any) -> Engine:
    """What `attach_engine` left."""
    engine: Engine = vllm_config.rufus_engine
    return engine


def quiet_shutdown() -> None:
    """Keep the end of EngineCore from raising on a torch without accelerator.

    `cleanup_dist_env_and_memory` empties the accelerator's caches unless the platform is the
    built-in CPU one.
    """
    if not torch.accelerator.is_available():
        torch.accelerator.empty_cache = lambda: None
        torch.accelerator.empty_host_cache = lambda: None
