"""How likely a prompt's own tokens are: as transformers says, however it is asked for."""

from typing import Any

import numpy as np
import openai
import pytest

from tests.e2e.models import prompt, reference_logprobs
from tests.e2e.server import DEMO_MODEL, Server

ATOL = 1e-3
"""Of float32 on two followers beside transformers in float32."""


@pytest.fixture(scope="module")
def client(demo_server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{demo_server.url}/v1", api_key="any", max_retries=0)


def ask(client: openai.OpenAI, server: Server, prompts: Any, **fields: Any) -> list[Any]:
    """Choices as evaluation harnesses ask for them."""
    body = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "echo": True, "seed": 1234} | fields
    return client.completions.create(model=server.name, prompt=prompts, **body).choices


def assert_likely(tokens: list[int], found: list[float | None]) -> None:
    """`found`: of the prompt's tokens, and maybe of more."""
    expected = reference_logprobs(DEMO_MODEL, tokens)
    own = np.take_along_axis(expected[:-1], np.array(tokens[1:], np.int64)[:, None], axis=1)[:, 0]
    assert found[0] is None
    np.testing.assert_allclose(found[1 : len(tokens)], own, atol=ATOL)


def test_lists_of_token_ids_are_scored_as_transformers_does(
    demo_server: Server, client: openai.OpenAI
) -> None:
    prompts = [prompt(length, start=start) for start, length in ((0, 1), (50, 2), (70, 130))]
    choices = ask(client, demo_server, prompts)
    for tokens, choice in zip(prompts, choices, strict=True):
        assert len(choice.logprobs.tokens) == len(tokens) + 1
        assert_likely(tokens, choice.logprobs.token_logprobs)


@pytest.mark.parametrize("num_best", [1, 5])
def test_the_best_tokens_stand_beside_each(
    demo_server: Server, client: openai.OpenAI, num_best: int
) -> None:
    tokens = prompt(40, start=300)
    (choice,) = ask(client, demo_server, tokens, logprobs=num_best)
    best = -np.sort(-reference_logprobs(DEMO_MODEL, tokens)[:-1], axis=1)[:, :num_best]
    found = choice.logprobs.top_logprobs[1 : len(tokens)]
    for expected, top in zip(best, found, strict=True):
        likeliest = sorted(top.values(), reverse=True)[:num_best]
        np.testing.assert_allclose(likeliest, expected[: len(likeliest)], atol=ATOL)


def test_no_tokens_may_be_asked_for_but_the_prompts(
    demo_server: Server, client: openai.OpenAI
) -> None:
    tokens = prompt(30, start=500)
    (choice,) = ask(client, demo_server, tokens, max_tokens=0)
    assert len(choice.logprobs.token_logprobs) == len(tokens)
    assert_likely(tokens, choice.logprobs.token_logprobs)


def test_a_prompt_of_a_cached_beginning_is_scored_from_its_first_token(
    demo_server: Server, client: openai.OpenAI
) -> None:
    tokens = prompt(200, start=900)
    client.completions.create(model=demo_server.name, prompt=tokens, max_tokens=1)
    hits = demo_server.metric("vllm:prefix_cache_hits_total")
    (choice,) = ask(client, demo_server, tokens)
    assert demo_server.metric("vllm:prefix_cache_hits_total") == hits
    assert_likely(tokens, choice.logprobs.token_logprobs)


def test_a_chat_tells_of_its_prompt_and_of_the_ranks_of_its_tokens(
    demo_server: Server, client: openai.OpenAI
) -> None:
    answer = client.chat.completions.create(
        model=demo_server.name,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=2,
        extra_body={"prompt_logprobs": 2, "return_token_ids": True},
    )
    tokens, (first, *told) = answer.prompt_token_ids, answer.prompt_logprobs
    of_all = reference_logprobs(DEMO_MODEL, tokens)
    assert first is None
    for token, expected, found in zip(tokens[1:], of_all[:-1], told, strict=True):
        own = found[str(token)]
        assert own["logprob"] == pytest.approx(expected[token], abs=ATOL)
        assert (expected > expected[token] + ATOL).sum() < own["rank"]
        assert own["rank"] <= (expected > expected[token] - ATOL).sum()
        assert {each["rank"] for each in found.values()} >= {1, 2}
