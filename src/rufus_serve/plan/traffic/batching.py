"""`Batching`: how one group forms its steps. The rules are the leader's own."""

import msgspec

from rufus_serve.config.schema import NeuronRuntimeConfig
from rufus_serve.plan.plan import Plan


class Batching(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of a group's steps, in tokens, rows and blocks."""

    max_num_seqs: int
    largest_prefill: int
    """New tokens that one prefill step holds."""
    prefill_tokens_per_step: int
    """New prompt tokens of one scheduler step."""
    num_blocks: int
    """KV blocks, the null block not counted."""
    block_size: int = 32
    max_prefills_per_step: int = 0
    """New prompts beside running requests; 0: as many as there is room for."""
    segmented_prefill: bool = True
    """Whether a prompt may be prefilled in parts."""
    batched_prefill: bool = False
    """Whether prompts share a prefill step."""
    prefix_caching: bool = True
    steps_ahead: int = 1
    """Steps that are planned while another one runs: 1 with asynchronous scheduling, else 0."""

    @property
    def kv_tokens(self) -> int:
        """That the cache holds."""
        return self.num_blocks * self.block_size

    def blocks(self, tokens: int) -> int:
        """That a sequence of `tokens` takes."""
        return -(-tokens // self.block_size)

    @classmethod
    def of(cls, plan: Plan) -> "Batching":
        """Of runtime neuron with the settings that the plan recommends."""
        compiled = plan.request.compiled
        prefills = NeuronRuntimeConfig().max_prefills_per_decode
        return cls(
            max_num_seqs=compiled.max_num_seqs,
            largest_prefill=compiled.prefill[-1],
            prefill_tokens_per_step=prefills * compiled.prefill[-1],
            num_blocks=compiled.num_blocks - 1,
            block_size=compiled.block_size,
            max_prefills_per_step=prefills,
            segmented_prefill=compiled.is_block,
            prefix_caching=compiled.is_block,
        )
