import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rufus_serve.leader.engine import truncation
from rufus_serve.leader.engine.truncation import NUM_CANDIDATES, TruncatedSampler, draw, keep

VOCAB = 1000


def reference(logits: torch.Tensor, k: int, p: float) -> torch.Tensor:
    """Probabilities after top-k, then top-p, by sorting everything: [V]."""
    ordered, ids = logits.double().sort(descending=True)
    if k < len(logits):
        ordered = ordered.masked_fill(ordered < ordered[k - 1], float("-inf"))
    probs = ordered.softmax(0)
    before = probs.cumsum(0) - probs
    probs[1:] = probs[1:].masked_fill(before[1:] >= p, 0.0)
    return torch.zeros_like(probs).scatter_(0, ids, probs / probs.sum())


class Whole:
    """Stands for vLLM's sampler: remembers what it was asked."""

    def __init__(self, logprobs_mode: str = "raw_logprobs") -> None:
        self.logprobs_mode = logprobs_mode
        self.asked: list[tuple[torch.Tensor, dict, torch.Tensor | None, torch.Tensor | None]] = []

    def __call__(self, logits, generators, k, p):
        self.asked.append((logits, generators, k, p))
        return torch.full((len(logits),), -1), None


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k=st.sampled_from([1, 2, 50, NUM_CANDIDATES - 1, NUM_CANDIDATES, NUM_CANDIDATES + 1, VOCAB]),
    p=st.sampled_from([1e-6, 0.3, 0.9, 0.999, 1.0]),
    spread=st.sampled_from([0.1, 1.0, 4.0, 20.0]),
)
def test_exact_rows_keep_what_sorting_everything_keeps(seed, k, p, spread):
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * spread
    values, ids = logits.topk(NUM_CANDIDATES)
    weights, is_exact = keep(
        values[None],
        logits.logsumexp(0)[None],
        k=torch.tensor([k]),
        p=torch.tensor([p]),
        vocab_size=VOCAB,
    )
    expected = reference(logits, k, p)
    if bool(is_exact):
        found = torch.zeros(VOCAB, dtype=torch.float64)
        found[ids] = (weights[0] / weights[0].sum()).double()
        # The edge of a nucleus may fall differently in float32; what lies there weighs little.
        assert (found - expected).abs().sum() < 1e-3
    else:
        # A row without truncation has no candidates; sums of float32 end near the sum, not at it.
        kept = int((reference(logits, k, p + 1e-5) > 0).sum())
        assert p == 1.0 or kept >= NUM_CANDIDATES or NUM_CANDIDATES <= k < VOCAB


def test_a_small_k_or_a_peaked_row_is_always_exact():
    logits = torch.randn(1, VOCAB) * 10
    values = logits.topk(NUM_CANDIDATES).values
    normalizer = logits.logsumexp(1)
    assert keep(values, normalizer, k=torch.tensor([50]), p=None, vocab_size=VOCAB)[1]
    assert keep(values, normalizer, k=None, p=torch.tensor([0.9]), vocab_size=VOCAB)[1]
    assert keep(values, normalizer, k=torch.tensor([50]), p=torch.tensor([1.0]), vocab_size=VOCAB)[
        1
    ]


def test_ties_that_may_reach_beyond_the_candidates_are_not_exact():
    values = torch.zeros(1, NUM_CANDIDATES)
    normalizer = torch.full((1,), VOCAB).log()
    assert not keep(values, normalizer, k=torch.tensor([5]), p=None, vocab_size=VOCAB)[1]
    assert not keep(values, normalizer, k=None, p=torch.tensor([0.9]), vocab_size=VOCAB)[1]


def test_each_row_goes_its_own_way():
    whole = Whole()
    peaked = torch.full((VOCAB,), -50.0)
    peaked[7] = 50.0
    logits = torch.stack([peaked, torch.zeros(VOCAB), peaked])
    generators = {row: torch.Generator().manual_seed(row) for row in (1, 2)}
    tokens, logprobs = TruncatedSampler(whole)(
        logits, generators, torch.tensor([VOCAB] * 3), torch.tensor([0.9, 0.8, 0.7])
    )
    assert tokens.tolist() == [7, -1, 7]
    assert logprobs is None
    ((rows, own, k, p),) = whole.asked
    assert rows.shape == (1, VOCAB)
    assert own == {0: generators[1]}
    assert k.tolist() == [VOCAB]
    assert p.tolist() == pytest.approx([0.8])


def test_a_batch_without_truncation_or_with_processed_logprobs_is_vllms_own():
    for mode, p in (("raw_logprobs", None), ("processed_logprobs", torch.tensor([0.5]))):
        whole = Whole(mode)
        logits = torch.randn(1, VOCAB)
        assert TruncatedSampler(whole)(logits, {}, None, p)[0].tolist() == [-1]
        assert whole.asked


def test_draws_follow_the_weights():
    torch.manual_seed(0)
    weights = torch.tensor([[0.5, 0.25, 0.25, 0.0]]).expand(20000, -1)
    counts = torch.bincount(draw(weights, {}), minlength=4) / 20000
    assert counts.tolist() == pytest.approx([0.5, 0.25, 0.25, 0.0], abs=0.02)
    assert counts[3] == 0


def test_a_seeded_row_draws_the_same_in_any_company():
    weights = torch.rand(3, 100)
    alone = draw(weights[1:2], {0: torch.Generator().manual_seed(5)})
    together = draw(weights, {1: torch.Generator().manual_seed(5)})
    assert alone[0] == together[1]
    assert truncation.of_rows({1: None}, torch.tensor([1, 2])) == {0: None}
