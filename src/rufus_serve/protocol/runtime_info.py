"""What a follower says of its runtime."""

from collections.abc import Sequence

import msgspec


class ArtifactUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a load of weights had of artifacts: all 0 where it had none."""

    kept_files: int = 0
    """Found where they are needed, and good."""
    kept_bytes: int = 0
    fetched_files: int = 0
    """Copied from where artifacts are kept."""
    fetched_bytes: int = 0
    compile_s: float = 0.0
    """Spent on making what was not made ahead of time."""


class RuntimeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a follower can do, known once its weights are loaded."""

    model_type: str
    num_layers: int
    num_kv_heads: int
    """KV heads of the whole model, before sharding or replication."""
    head_size: int
    vocab_size: int
    dtype: str
    block_size: int
    num_blocks: int
    """KV blocks that fit here, vLLM's null block 0 included."""
    max_model_len: int
    prefill_buckets: tuple[int, ...]
    decode_batch_buckets: tuple[int, ...]
    context_buckets: tuple[int, ...]
    prefix_caching: bool = True
    """A prefill may start where cached blocks end."""
    segmented_prefill: bool = True
    """A prompt may be prefilled in several steps."""
    can_rejoin: bool = True
    """`join` may be called again with the weights kept."""
    weights_bytes: int = 0
    load_s: float = 0.0
    artifacts: ArtifactUse = ArtifactUse()
    kernels: str = ""
    """What the CPU runtime computes with: the instruction set of its kernels, or torch."""
    candidates: bool = False
    """A step may ask for candidates, and for rows in full until the next steps begin."""
    device_candidates: int = 0
    """Candidates of a row that cost the follower no row in full; 0: it has all rows in full."""
    multi_token_decode: bool = False
    """Rows of a decode may be successive tokens of one sequence: each sees those before it."""
    drafts_are_free: bool = False
    """A decode computes as many tokens of a sequence whether they are drafted or not."""
    chosen_tokens: int = 0
    """Most tokens of a row that a decode chooses, greedily, as `ChosenTokens`; a prefill chooses
    one. Nothing else is told of logits then. 0: the leader chooses."""
    batched_prefill: bool = False
    """A prefill may have several rows; one may share blocks that another completes."""
    prompt_logprobs: bool = False
    """A prefill may ask for `PromptScores`."""

    def together_with(self, others: Sequence["RuntimeInfo"]) -> "RuntimeInfo":
        """What a group can do with this follower as its first: no more than any of `others`."""
        return msgspec.structs.replace(
            self,
            num_blocks=min(each.num_blocks for each in (self, *others)),
            prompt_logprobs=all(each.prompt_logprobs for each in (self, *others)),
        )
