"""`TruncatedSampler`: top-k and top-p without sorting whole vocabularies.

Without Triton, vLLM sorts every row of the vocabulary: 10 ms a row of 128,256 logits on one
thread, against 0.3 ms for the largest 256. Those hold everything that top-k and top-p keep of
nearly every row; a row of which they do not goes vLLM's way. The distribution is the same.

Shape legend: R rows, V vocabulary, K candidates.
"""

from typing import Any

import torch

# One more than the largest top-k that is cut here, so that ties with the last are seen.
NUM_CANDIDATES = 257
Generators = dict[int, torch.Generator]


class TruncatedSampler(torch.nn.Module):
    """In place of vLLM's `TopKTopPSampler`, which it holds as `whole`; step thread only."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self._whole = whole
        self._wants_processed = str(whole.logprobs_mode).startswith("processed")

    def forward(
        self,
        logits: torch.Tensor,
        generators: Generators,
        k: torch.Tensor | None,
        p: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Token ids [R] drawn from `logits` [R, V], which may be overwritten.

        `generators` holds those of seeded rows; `k` [R] is V and `p` [R] is 1 for rows without.
        The second value is vLLM's processed logprobs, None unless it is set to return them.
        """
        vocab_size = logits.shape[1]
        if (k is None and p is None) or self._wants_processed or vocab_size <= NUM_CANDIDATES:
            return self._whole(logits, generators, k, p)  # type: ignore[no-any-return]
        values, ids = logits.topk(NUM_CANDIDATES, dim=1)
        normalizer = torch.logsumexp(logits, dim=1)
        probs, is_exact = keep(values, normalizer, k=k, p=p, vocab_size=vocab_size)
        short, long = is_exact.nonzero()[:, 0], (~is_exact).nonzero()[:, 0]
        tokens = ids.new_empty(len(logits))
        if len(short):
            drawn = draw(probs[short], of_rows(generators, short))
            tokens[short] = ids[short, drawn]
        if len(long):
            tokens[long], _ = self._whole(
                logits[long],
                of_rows(generators, long),
                None if k is None else k[long],
                None if p is None else p[long],
            )
        return tokens, None


def keep(
    values: torch.Tensor,
    normalizer: torch.Tensor,
    *,
    k: torch.Tensor | None,
    p: torch.Tensor | None,
    vocab_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [R, K] of the candidates that top-k, then top-p keep, and which rows are whole.

    `values` [R, K] are the largest logits, descending; `normalizer` [R] is the logsumexp of all.
    A row is not whole if candidates beyond K may belong to what is kept, ties included.
    """
    num_candidates = values.shape[1]
    kept = torch.ones_like(values, dtype=torch.bool)
    is_exact = torch.zeros(len(values), dtype=torch.bool)
    may_use_p = torch.ones_like(is_exact)
    if k is not None:
        smallest = values.gather(1, k.long().clamp(1, num_candidates).unsqueeze(1) - 1)
        is_cut = (k <= num_candidates) & (values[:, -1] < smallest[:, 0])
        kept &= (values >= smallest) | ~is_cut.unsqueeze(1)
        within = values.masked_fill(~kept, float("-inf")).logsumexp(dim=1)
        normalizer = torch.where(is_cut, within, normalizer)
        is_exact = is_cut
        # Top-p comes after top-k, so it cannot be told where top-k was not.
        may_use_p = is_cut | (k == vocab_size)
    probs = torch.exp(values - normalizer.unsqueeze(1)).masked_fill_(~kept, 0.0)
    if p is not None:
        before = probs.cumsum(dim=1) - probs
        in_nucleus = before < p.unsqueeze(1)
        in_nucleus[:, 0] = True
        is_exact = is_exact | (may_use_p & ~in_nucleus[:, -1])
        probs.masked_fill_(~in_nucleus, 0.0)
    return probs, is_exact


def draw(weights: torch.Tensor, generators: Generators) -> torch.Tensor:
    """Column indices [R], each with a probability in proportion to its weight [R, K].

    The largest weight over exponential noise wins. Seeded rows draw from their own generators.
    """
    noise = torch.empty_like(weights)
    if len(generators) < len(weights):
        noise.exponential_()
    for row, generator in generators.items():
        noise[row].exponential_(generator=generator)
    return weights.div(noise).argmax(dim=1)


def of_rows(generators: Generators, rows: torch.Tensor) -> Generators:
    """The generators of some `rows`, by their place among these."""
    if not generators:
        return {}
    return {place: generators[row] for place, row in enumerate(rows.tolist()) if row in generators}
