"""Messages of the step channel, leader → follower and back.

Shape legend: R rows (sequences), T new tokens of the step, L context length, W blocks per row,
V vocabulary, K candidates of a row, E tokens named for a row, F rows in full, P scored tokens of a
prompt, N best tokens beside each. All index arrays are int32, all logits float32.
"""

from enum import Enum

import msgspec
import numpy as np

Array = np.ndarray


class Phase(str, Enum):
    """Which compiled graph a step runs in."""

    PREFILL = "prefill"
    DECODE = "decode"


class Message(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """A message; its class name is the tag on the wire."""


class StepHello(Message, frozen=True):
    """First message of a leader on a step channel."""

    protocol_version: int
    config_hash: str
    epoch: int
    leader_id: str


class ReplyMemory(msgspec.Struct, frozen=True, kw_only=True):
    """Memory that a leader on the same host may open, to find large replies in."""

    boot_id: str
    """Of the host, since its last start."""
    path: str
    secret: str
    """The memory's first bytes, in hexadecimal digits."""
    capacity: int


class StepWelcome(Message, frozen=True):
    """A follower's answer to `StepHello`; `refused` says why not, if so."""

    protocol_version: int
    config_hash: str
    epoch: int
    node_rank: int
    refused: str = ""
    reply_memory: ReplyMemory | None = None


class MemoryOpened(Message, frozen=True):
    """A leader's word that it opened `StepWelcome.reply_memory`; without it, none is used."""

    epoch: int


class StoredReply(Message, frozen=True):
    """A reply of a follower lies in its memory."""

    epoch: int
    sequence: int
    """Rises by one with each reply left there."""
    place: int
    frame_sizes: tuple[int, ...]


class RowWants(msgspec.Struct, frozen=True, kw_only=True):
    """What the leader needs of each row of a step to sample it."""

    num_candidates: Array
    """[R] K, or -1 for the row in full."""
    temperatures: Array
    """[R, 2] float32, at which the row's total is wanted; 0 where none is."""
    num_token_ids: Array
    """[R] E."""
    token_ids: Array
    """[sum of E] tokens whose logits are wanted; candidates and totals leave them out."""
    shares: Array | None = None
    """[R] float32, how much of the row's total, at the first temperature, candidates should hold.

    More than K may come for that, but for rows where they would be too many. None: K are enough.
    """


class PromptWants(msgspec.Struct, frozen=True, kw_only=True):
    """Asks how likely a prompt's own tokens were; of a prefill with a single row."""

    next_ids: Array
    """[P] the tokens behind the step's first P new ones."""
    num_best: int
    """N"""


class StepRequest(Message, frozen=True):
    """One call of the runtime, identical on every follower.

    A prefill has one row: `token_ids` [L] is the context up to this step's end, of which the
    first `num_computed_tokens[0]` are in the KV cache already. With `RuntimeInfo.batched_prefill`
    it may have several, whose contexts and slots lie one after the other.

    A decode has R rows of one new token each: `token_ids` [R]. With
    `RuntimeInfo.multi_token_decode` several of them may belong to one sequence, at successive
    positions, with the same block table. With `RuntimeInfo.chosen_tokens` a row's `slot_mapping`
    has its own token's slot; those of the tokens that it chooses follow it in the row's blocks.
    """

    step_id: int
    """Rises by one with each request of an epoch."""
    epoch: int
    phase: Phase
    token_ids: Array
    num_computed_tokens: Array
    """[R] tokens whose KV is already in the cache."""
    context_lens: Array
    """[R] tokens in the context once this step is done."""
    block_table: Array
    """[R, W] KV blocks in context order, padded with the null block 0."""
    slot_mapping: Array
    """[T] cache slot (block * block_size + offset) of each new token."""
    want_logits: bool = True
    """False for all but the last segment of a segmented prefill."""
    wants: RowWants | None = None
    """None: all rows in full."""
    keep_since: int = -1
    """Logits of steps from this one on may still be asked for; -1 stands for `step_id`."""
    prompt_wants: PromptWants | None = None
    """Only with `RuntimeInfo.prompt_logprobs`."""

    @property
    def num_rows(self) -> int:
        """R."""
        return int(self.context_lens.shape[0])

    @property
    def num_new_tokens(self) -> int:
        """T, summed over the rows."""
        return int(self.slot_mapping.shape[0])

    @property
    def needs_logits(self) -> bool:
        """Whether anything is wanted of any logits."""
        return self.want_logits or self.prompt_wants is not None


class LogitsRequest(Message, frozen=True):
    """Asks for rows of an earlier step in full; every follower answers, node rank 0 with them."""

    step_id: int
    """Of this request; counts on with the steps."""
    epoch: int
    of_step_id: int
    rows: Array
    """[F]"""


class Candidates(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `RowWants`, rows one after the other."""

    logits: Array
    """[sum of K] float32, of each row's best tokens in falling order, equals by their ids."""
    ids: Array
    """[sum of K]"""
    log_totals: Array
    """[R, 2] float64: logsumexp of the row at each wanted temperature, else 0."""
    token_logits: Array
    """[sum of E] float32, of the tokens named in the request."""
    counts: Array | None = None
    """[R] how many candidates each row has; None: K, as wanted."""


class PromptScores(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `PromptWants`, position by position."""

    ids: Array
    """[P, 1 + N] the token that followed, then the best in falling order, equals by their ids."""
    logits: Array
    """[P, 1 + N] float32, of these."""
    log_totals: Array
    """[P] float64, logsumexp of the whole row."""
    ranks: Array
    """[P] how many tokens are as likely as the one that followed, itself included."""


class ChosenTokens(msgspec.Struct, frozen=True, kw_only=True):
    """What followers chose themselves; only with `RuntimeInfo.chosen_tokens`, k here."""

    token_ids: Array
    """[R, k] each row's next tokens, padded with -1."""
    num_accepted: Array
    """[R] how many they are, at least 1; keys of all but the last are in the cache."""


class StepReply(Message, frozen=True):
    """A follower finished a step; node rank 0 adds what was wanted of the logits."""

    step_id: int
    epoch: int
    node_rank: int
    compute_s: float
    logits: Array | None = None
    """[F, V] the rows wanted in full, in their order."""
    candidates: Candidates | None = None
    wait_s: float = 0.0
    """Part of `compute_s` spent waiting for peers in collectives."""
    began: float = 0.0
    """When the follower began, by its host's monotonic clock."""
    prompt_scores: PromptScores | None = None
    chosen: ChosenTokens | None = None
    """Instead of logits and candidates."""


class StepFailed(Message, frozen=True):
    """A follower could not run a step."""

    step_id: int
    epoch: int
    node_rank: int
    error: str
    refused: bool = False
    """The runtime refused the step or failed in it; else a peer or an earlier step did."""


StepOrder = StepRequest | LogitsRequest
"""What followers answer with a `StepReply` or `StepFailed`."""
StepMessage = (
    StepHello | StepWelcome | StepOrder | StepReply | StepFailed | MemoryOpened | StoredReply
)
