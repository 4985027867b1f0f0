"""Fits vLLM's configuration to what the followers can do."""

import logging
from dataclasses import dataclass
from typing import Any

from rufus_serve.config import ServeConfig
from rufus_serve.errors import ConfigError
from rufus_serve.protocol.messages import RuntimeInfo

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroupShape:
    """What the first group fixed for the life of this leader."""

    info: RuntimeInfo
    num_blocks: int
    """KV blocks that vLLM may use, null block included."""
    prefills_per_step: int = 1
    """Prefill steps' worth of new tokens that one scheduler step may bring."""
    tokens_per_row: int = 1
    """Most tokens of a running request in a step, drafts included."""

    @classmethod
    def of(cls, info: RuntimeInfo, config: ServeConfig) -> "GroupShape":
        """The shape of a group of `info`, within the configured number of blocks."""
        num_blocks = min(info.num_blocks, config.num_blocks or info.num_blocks)
        prefills = config.neuron.max_prefills_per_decode if config.is_neuron_shaped else 1
        return cls(info, num_blocks, prefills, 1 + config.num_speculative_tokens)

    def longest_context(self, asked: int) -> int:
        """Tokens of one request that every follower step can hold, at most `asked`.

        A preempted request is prefilled again with all its tokens. Without segments, that
        must fit one prefill bucket.
        """
        limits = [asked, self.info.max_model_len]
        if not self.info.segmented_prefill:
            limits.append(max(self.info.prefill_buckets))
        return min(limits)

    def prefill_tokens_per_step(self, max_model_len: int) -> int:
        """New prompt tokens that one scheduler step may bring."""
        segmented = self.info.segmented_prefill
        largest = max(self.info.prefill_buckets) if segmented else max_model_len
        return self.prefills_per_step * largest

    def check_memory(self, max_model_len: int) -> None:
        """Raise ConfigError unless one request of `max_model_len` fits the KV cache."""
        needed = -(-max_model_len // self.info.block_size) + 1
        if needed > self.num_blocks:
            holds = (self.num_blocks - 1) * self.info.block_size
            raise ConfigError(
                f"one request of max_model_len={max_model_len} tokens needs {needed} KV blocks, "
                f"but there are {self.num_blocks}; set max_model_len to {holds} or less, or give "
                "the KV cache more memory"
            )

    def apply_to(self, vllm_config: Any) -> None:
        """Write the limits into vLLM's configuration, before its scheduler is made.

        Raises:
            ConfigError: not even one request of the longest length fits, or followers lack a
                capability that the configuration needs.
        """
        takes_drafts = self.info.multi_token_decode or self.info.chosen_tokens
        if self.tokens_per_row > 1 and not takes_drafts:
            raise ConfigError(
                "speculation is configured, but these followers' decodes hold one token a row; "
                "set speculation.method to none"
            )
        model, scheduler = vllm_config.model_config, vllm_config.scheduler_config
        asked = model.max_model_len
        model.max_model_len = self.longest_context(asked)
        if model.max_model_len < asked:
            _log.warning(
                "max_model_len is %d, not %d: followers hold no longer context in one piece",
                model.max_model_len,
                asked,
            )
        self.check_memory(model.max_model_len)
        vllm_config.cache_config.block_size = self.info.block_size
        if not self.info.prefix_caching:
            vllm_config.cache_config.enable_prefix_caching = False
        scheduler.enable_chunked_prefill = self.info.segmented_prefill
        budget = self.prefill_tokens_per_step(model.max_model_len)
        scheduler.max_num_batched_tokens = budget + scheduler.max_num_seqs * self.tokens_per_row

    def mismatch(self, info: RuntimeInfo) -> str:
        """Why a later group cannot serve this leader; empty if it can."""
        if info.num_blocks < self.num_blocks:
            return f"the new group holds {info.num_blocks} KV blocks, not {self.num_blocks}"
        if self.info.prompt_logprobs and not info.prompt_logprobs:
            return "the new group cannot tell prompt_logprobs, which requests may wait for"
        ours, theirs = _layout(self.info), _layout(info)
        if ours != theirs:
            return f"the new group is of another shape: {theirs}, not {ours}"
        return ""


def _layout(info: RuntimeInfo) -> tuple[object, ...]:
    return (
        info.num_layers, info.num_kv_heads, info.head_size, info.vocab_size, info.block_size,
        info.prefill_buckets, info.decode_batch_buckets, info.context_buckets,
        info.prefix_caching, info.segmented_prefill, info.multi_token_decode,
        info.batched_prefill, info.chosen_tokens,
    )  # fmt: skip
