import numpy as np
import pytest
import torch

from rufus_serve.leader.engine.truncation import TruncatedSampler

VOCAB = 1000
K, P = torch.tensor([VOCAB, 5, 50, VOCAB]), torch.tensor([1.0, 1.0, 0.9, 0.5])


class Whole:
    """Stands for vLLM's sampler: of its processed logits only those above zero are left."""

    def __init__(self, logprobs_mode: str) -> None:
        self.logprobs_mode = logprobs_mode

    def __call__(self, logits, generators, k, p):
        return None, logits.masked_fill(logits < 0, float("-inf"))


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(1)) * 3


def test_each_row_is_cut_by_its_own_filters(logits):
    truncated = TruncatedSampler(Whole("raw_logprobs"))
    ranks = logits.argsort(dim=1, descending=True).argsort(dim=1)
    seen = torch.zeros(4, dtype=torch.int64)
    for number in np.linspace(0, 0.999999, 200):
        truncated.uniforms = np.full(4, number)
        tokens, processed = truncated(logits.clone(), {}, K, P)
        assert processed is None
        seen = torch.maximum(seen, ranks[torch.arange(4), tokens])
    assert seen[1] == 4
    assert seen[2] < 50
    assert seen[3] < seen[0]


def test_processed_logprobs_are_vllms_and_tokens_are_drawn_of_what_they_leave(logits):
    truncated = TruncatedSampler(Whole("processed_logits"))
    for number in np.linspace(0, 0.999999, 50):
        truncated.uniforms = np.full(4, number)
        tokens, processed = truncated(logits.clone(), {}, K, P)
        assert (logits[torch.arange(4), tokens] >= 0).all()
        assert torch.isinf(processed).sum() == (logits < 0).sum()
