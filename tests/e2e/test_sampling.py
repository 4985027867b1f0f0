"""Every sampling parameter does what it says, on logits that came from the followers."""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.e2e.server import Server

PROMPT = "The capital of France is"


@pytest.fixture
def client(demo_server: Server) -> Iterator[openai.OpenAI]:
    with demo_server.client() as client:
        yield client


def complete(server: Server, **fields: Any) -> dict[str, Any]:
    """The answer to a completion, greedy unless `fields` say otherwise."""
    body = {"model": server.name, "prompt": PROMPT, "temperature": 0, "max_tokens": 8}
    status, answer = server.post("/v1/completions", body | fields)
    assert status == 200, answer
    return answer


def text(server: Server, **fields: Any) -> str:
    return complete(server, **fields)["choices"][0]["text"]


def test_logprobs_are_those_of_the_chosen_and_the_best_tokens(
    demo_server: Server, client: openai.OpenAI
) -> None:
    answer = client.chat.completions.create(
        model=demo_server.name,
        messages=[{"role": "user", "content": "Say yes or no."}],
        temperature=0,
        max_tokens=4,
        logprobs=True,
        top_logprobs=5,
    )
    for token in answer.choices[0].logprobs.content:
        best = [entry.logprob for entry in token.top_logprobs]
        assert best == sorted(best, reverse=True)
        assert len(best) == 5
        assert token.logprob == best[0]
        assert 0 < sum(map(math.exp, best)) <= 1 + 1e-5


def test_completion_logprobs_belong_to_the_tokens(demo_server: Server) -> None:
    found = complete(demo_server, logprobs=2, max_tokens=3)["choices"][0]["logprobs"]
    assert found["tokens"][0] == " Paris"
    for chosen, best in zip(found["token_logprobs"], found["top_logprobs"], strict=True):
        assert chosen == max(best.values())
        assert len(best) == 2


def test_n_gives_as_many_different_answers(demo_server: Server) -> None:
    answer = complete(demo_server, n=3, temperature=1.5, seed=1, max_tokens=10)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({choice["text"] for choice in answer["choices"]}) == 3


def test_a_seed_repeats_its_answer_alone_and_inside_a_batch(demo_server: Server) -> None:
    def seeded(seed: int) -> str:
        return text(demo_server, temperature=1, seed=seed, max_tokens=16)

    alone = [seeded(seed) for seed in (1, 2)]
    with ThreadPoolExecutor(8) as pool:
        batch = list(pool.map(seeded, (1, 3, 4, 2, 5, 6, 7, 1)))
    assert (batch[0], batch[3], batch[7]) == (alone[0], alone[1], alone[0])
    assert len(set(batch)) == 7


def test_unseeded_answers_differ(demo_server: Server) -> None:
    assert len({text(demo_server, temperature=1.5, max_tokens=12) for _ in range(3)}) == 3


def test_one_of_as_many_stop_strings_as_allowed_ends_the_text_before_it(
    demo_server: Server,
) -> None:
    stop = ["Paris", *(f"no {number}" for number in range(63))]
    choice = complete(demo_server, stop=stop)["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (
        " ", "stop", "Paris",
    )  # fmt: skip


def test_a_stop_token_ends_the_text(demo_server: Server) -> None:
    tokens = demo_server.post("/tokenize", {"model": demo_server.name, "prompt": "."})[1]["tokens"]
    choice = complete(demo_server, stop_token_ids=tokens)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["stop_reason"] == tokens[0]


def test_min_tokens_puts_off_the_end(demo_server: Server) -> None:
    chat = {"model": demo_server.name, "messages": [{"role": "user", "content": "Say hi."}]}
    fields = {"temperature": 0, "min_tokens": 30, "max_tokens": 40}
    usage = demo_server.post("/v1/chat/completions", chat | fields)[1]["usage"]
    assert usage["completion_tokens"] >= 30


def test_a_bias_forces_and_forbids_tokens(demo_server: Server) -> None:
    assert text(demo_server, logit_bias={"100": 100}, max_tokens=3) == "ttt"
    paris = demo_server.post("/tokenize", {"model": demo_server.name, "prompt": " Paris"})[1]
    bias = {str(paris["tokens"][0]): -100}
    assert not text(demo_server, logit_bias=bias, max_tokens=1).startswith(" Paris")


def test_bad_words_do_not_come(demo_server: Server) -> None:
    assert "Paris" in text(demo_server)
    assert "Paris" not in text(demo_server, bad_words=["Paris"])


def test_allowed_tokens_are_all_that_comes(demo_server: Server) -> None:
    answer = complete(demo_server, allowed_token_ids=[30, 33], return_token_ids=True)
    assert set(answer["choices"][0]["token_ids"]) <= {30, 33}


@pytest.mark.parametrize("fields", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_a_filter_that_leaves_one_token_is_greedy(
    demo_server: Server, fields: dict[str, Any]
) -> None:
    assert text(demo_server, temperature=1.5, **fields) == text(demo_server)


@pytest.mark.parametrize(
    "fields", [{"presence_penalty": 2}, {"frequency_penalty": 2}, {"repetition_penalty": 2.0}]
)
def test_a_penalty_breaks_a_loop(demo_server: Server, fields: dict[str, Any]) -> None:
    loop = "0, " * 10 + "0,"

    def counted(**more: Any) -> int:
        answer = complete(demo_server, prompt=loop, max_tokens=16, return_token_ids=True, **more)
        return len(set(answer["choices"][0]["token_ids"]))

    assert counted(**fields) > counted() + 2
