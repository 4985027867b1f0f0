"""`Partition`: which part of a model each follower holds. All parallel arithmetic is here.

Shares need not be even. Attention is split along KV groups (a KV head and the query heads that
read it): with no more followers than KV heads, each follower takes whole groups; with more,
each takes one KV head, shared with the followers beside it, and a part of that head's query
heads. Either way a follower's query heads are contiguous and spread evenly over its KV heads.
"""

from dataclasses import dataclass

from rufus_serve.errors import ModelError
from rufus_serve.shard.model_config import ModelConfig


@dataclass(frozen=True)
class Span:
    """Indices `start` up to but not including `stop`."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        assert 0 <= self.start <= self.stop, (self.start, self.stop)

    @property
    def size(self) -> int:
        """How many indices."""
        return self.stop - self.start

    def times(self, width: int) -> "Span":
        """The same share, counted in units of which `width` make one of this."""
        return Span(self.start * width, self.stop * width)


def even_share(total: int, num_parts: int, index: int) -> Span:
    """Part `index` of `total` in `num_parts` contiguous parts; the first ones may be 1 larger."""
    size, num_larger = divmod(total, num_parts)
    start = index * size + min(index, num_larger)
    return Span(start, start + size + (index < num_larger))


@dataclass(frozen=True)
class Partition:
    """The share of follower `node_rank` among `num_nodes`."""

    num_q_heads: int
    num_kv_heads: int
    intermediate_size: int
    vocab_size: int
    num_nodes: int
    node_rank: int

    def __post_init__(self) -> None:
        assert 0 <= self.node_rank < self.num_nodes, (self.node_rank, self.num_nodes)
        if self.num_q_heads % self.num_kv_heads:
            raise ModelError(
                "query heads % KV heads must be 0, but "
                f"{self.num_q_heads} % {self.num_kv_heads} = {self.num_q_heads % self.num_kv_heads}"
            )
        limits = {
            "query heads": self.num_q_heads,
            "MLP columns": self.intermediate_size,
            "vocabulary rows": self.vocab_size,
        }
        for name, limit in limits.items():
            if self.num_nodes > limit:
                raise ModelError(
                    f"followers <= {name} must hold, but {self.num_nodes} > {limit}; "
                    f"use at most {min(limits.values())} nodes for this model"
                )

    @classmethod
    def of(cls, model: ModelConfig, *, num_nodes: int, node_rank: int) -> "Partition":
        """The share of `node_rank` in `model`. Raises `ModelError` if there are too many nodes."""
        return cls(
            num_q_heads=model.num_q_heads,
            num_kv_heads=model.num_kv_heads,
            intermediate_size=model.intermediate_size,
            vocab_size=model.vocab_size,
            num_nodes=num_nodes,
            node_rank=node_rank,
        )

    @property
    def adds_bias(self) -> bool:
        """Whether this follower adds the biases of layers whose outputs are summed."""
        return self.node_rank == 0

    @property
    def kv_heads(self) -> Span:
        """KV heads held here; with more followers than KV heads, also held by others."""
        if self.num_nodes <= self.num_kv_heads:
            return even_share(self.num_kv_heads, self.num_nodes, self.node_rank)
        head = self._shared_kv_head
        return Span(head, head + 1)

    @property
    def q_heads(self) -> Span:
        """Query heads held here; those of all followers are the whole, in order."""
        group_size = self.num_q_heads // self.num_kv_heads
        if self.num_nodes <= self.num_kv_heads:
            return self.kv_heads.times(group_size)
        sharers = even_share(self.num_nodes, self.num_kv_heads, self._shared_kv_head)
        part = even_share(group_size, sharers.size, self.node_rank - sharers.start)
        first = self._shared_kv_head * group_size
        return Span(first + part.start, first + part.stop)

    @property
    def group_size(self) -> int:
        """Query heads held here per KV head held here."""
        return self.q_heads.size // self.kv_heads.size

    @property
    def mlp_columns(self) -> Span:
        """Columns of the MLP's inner layer."""
        return even_share(self.intermediate_size, self.num_nodes, self.node_rank)

    @property
    def vocab_rows(self) -> Span:
        """Rows of the embedding and of the output layer."""
        return even_share(self.vocab_size, self.num_nodes, self.node_rank)

    def of_node(self, node_rank: int) -> "Partition":
        """The share of another follower of the same group."""
        return Partition(
            num_q_heads=self.num_q_heads,
            num_kv_heads=self.num_kv_heads,
            intermediate_size=self.intermediate_size,
            vocab_size=self.vocab_size,
            num_nodes=self.num_nodes,
            node_rank=node_rank,
        )

    @property
    def _shared_kv_head(self) -> int:
        """The one KV head of this follower when there are more followers than KV heads."""
        heads = range(self.num_kv_heads)
        shares = [even_share(self.num_nodes, self.num_kv_heads, head) for head in heads]
        return next(head for head in heads if self.node_rank < shares[head].stop)
