from types import SimpleNamespace
from typing import Any

import pytest

from rufus_serve.leader.api.greedy_only import needs_logits

PLAIN: dict[str, Any] = {
    "temperature": 0.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
    "repetition_penalty": 1.0, "min_tokens": 0, "logit_bias": None, "allowed_token_ids": None,
    "bad_words": [], "structured_outputs": None, "logprobs": None, "logprob_token_ids": None,
    "thinking_token_budget": None, "seed": 7, "stop": ["."], "max_tokens": 9,
}  # fmt: skip


def test_a_greedy_request_needs_no_logits_whatever_its_seed_and_stops() -> None:
    assert needs_logits(SimpleNamespace(**PLAIN)) == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 1.0), ("temperature", 0.1), ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5), ("repetition_penalty", 1.1), ("min_tokens", 1),
        ("logit_bias", {3: 1.0}), ("allowed_token_ids", [1]), ("bad_words", ["no"]),
        ("structured_outputs", object()), ("logprobs", 0), ("logprob_token_ids", [1]),
        ("thinking_token_budget", 5),
    ],
)  # fmt: skip
def test_what_a_graph_cannot_choose_by_is_named(name: str, value: object) -> None:
    assert needs_logits(SimpleNamespace(**PLAIN | {name: value})) == name
