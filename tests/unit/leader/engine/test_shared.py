import sys
from types import SimpleNamespace
from typing import Any

import pytest

from rufus_serve.leader.engine.shared import Engine


def request(num_computed: int, num_prompt: int) -> Any:
    return SimpleNamespace(num_computed_tokens=num_computed, num_prompt_tokens=num_prompt)


DECODING, HALFWAY = request(20, 10), request(64, 100)


@pytest.mark.parametrize(
    ("running", "max_prefills", "admitted"),
    [
        ([DECODING], 1, 1),
        ([DECODING] * 3, 2, 2),
        ([DECODING, HALFWAY], 1, 0),
        ([DECODING, HALFWAY], 2, 1),
        ([DECODING, HALFWAY, HALFWAY], 1, 0),
    ],
)
def test_only_so_many_prompts_join_running_requests(
    running: list[Any], max_prefills: int, admitted: int
) -> None:
    engine = Engine(max_prefills_per_step=max_prefills)
    assert engine.request_limit(running) - len(running) == admitted


@pytest.mark.parametrize(("running", "max_prefills"), [([], 1), ([DECODING], 0)])
def test_without_running_requests_or_a_limit_vllm_decides(
    running: list[Any], max_prefills: int
) -> None:
    assert Engine(max_prefills_per_step=max_prefills).request_limit(running) == sys.maxsize


def test_running_requests_have_their_token_beside_the_prompts() -> None:
    assert Engine(prefill_tokens_per_step=64).token_limit([DECODING] * 3) == 64 + 3


def test_running_requests_may_bring_drafts_beside_the_prompts() -> None:
    engine = Engine(prefill_tokens_per_step=64, tokens_per_row=5)
    assert engine.token_limit([DECODING] * 3) == 64 + 15
