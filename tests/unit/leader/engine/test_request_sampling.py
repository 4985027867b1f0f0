import pytest
from sampling_rows import VOCAB, parameters, sampling

from rufus_serve.leader.engine.dice import uniform
from rufus_serve.leader.engine.request_sampling import RequestSampling


@pytest.mark.parametrize(
    ("fields", "count", "temperatures"),
    [
        ({"temperature": 0.0}, 1, (0, 0)),
        ({"temperature": 0.0, "logprobs": 5}, 7, (0, 1)),
        ({"temperature": 0.0, "structured_outputs": object()}, 256, (0, 0)),
        ({"temperature": 0.7}, 256, (0.7, 0)),
        ({"temperature": 0.7, "top_p": 0.9, "logprobs": 0}, 256, (0.7, 1)),
        ({"top_k": 40}, 41, (0, 0)),
        ({"top_k": 500, "top_p": 0.9}, 501, (0, 0)),
        ({"top_k": VOCAB}, 256, (1, 0)),
        ({"min_p": 0.1}, 256, (0, 0)),
        ({"allowed_token_ids": [3]}, 0, (0, 0)),
        ({"logprobs": 1500}, 1502, (1, 1)),
    ],
)
def test_a_request_wants_no_more_than_decides_it(fields, count, temperatures):
    want = sampling(**fields).want()
    assert (want.num_candidates, want.temperatures) == (count, temperatures)


@pytest.mark.parametrize(
    ("fields", "count"),
    [({}, 64), ({"temperature": 0.0}, 1), ({"top_k": 100}, 101), ({"logprobs": 80}, 82),
     ({"temperature": 0.0, "structured_outputs": object()}, 64)],
)  # fmt: skip
def test_no_more_candidates_than_a_device_finds_are_wanted_unless_more_are_needed(fields, count):
    request = RequestSampling(parameters(**fields), [], [], vocab_size=VOCAB, device_candidates=64)
    assert request.want().num_candidates == count


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": 1500},
        {"structured_outputs": object(), "logprobs": 1},
        {"repetition_penalty": 1.1},
    ],
)
def test_a_request_whose_row_costs_less_in_full_wants_it(fields):
    assert sampling(prompt=range(VOCAB // 8), **fields).want().num_candidates == -1


@pytest.mark.parametrize(
    "fields", [{"logprobs": -1}, {"logprob_token_ids": [1]}, {"thinking_token_budget": 5}]
)
def test_what_only_vllm_knows_is_left_to_it(fields):
    assert sampling(**fields).needs_vllm
    assert not sampling(logprobs=3, logit_bias={1: 1.0}).needs_vllm


def test_the_number_is_that_of_the_seed_and_of_the_tokens_drawn():
    request = sampling(outputs=[4, 5], seed=9)
    assert request.uniform() == uniform(9, 2)
    assert request.uniform(3) == uniform(9, 5)
    assert sampling().uniform() != sampling().uniform()


@pytest.mark.parametrize(
    ("fields", "share"),
    [({"temperature": 0.0}, 0.0), ({"top_k": 40}, 0.0), ({"min_p": 0.1}, 0.0),
     ({"allowed_token_ids": [3]}, 0.0), ({"structured_outputs": object()}, 0.0),
     ({"top_p": 0.9}, 0.9), ({"top_p": 0.9, "presence_penalty": 0.1}, 0.9),
     ({"presence_penalty": 0.1}, uniform(9, 0)), ({}, uniform(9, 0))],
)  # fmt: skip
def test_a_request_without_top_k_says_how_much_of_the_row_decides_it(fields, share):
    assert sampling(seed=9, **fields).want().share == pytest.approx(share, rel=1e-4)


def test_with_drafts_the_largest_number_counts():
    numbers = [uniform(9, position) for position in range(4)]
    assert sampling(seed=9).want(4).share == pytest.approx(max(numbers), rel=1e-4)


@pytest.mark.parametrize(
    ("fields", "can"),
    [
        ({}, True),
        ({"temperature": 0.0, "logprobs": 5, "repetition_penalty": 1.1}, True),
        ({"structured_outputs": object()}, False),
        ({"top_k": 1500}, False),
    ],
)
def test_rows_with_grammars_or_in_full_have_no_drafts(fields, can):
    assert sampling(**fields).can_have_drafts is can


@pytest.mark.parametrize(
    "fields",
    [{"structured_outputs": object()}, {"logprobs": 0}, {"presence_penalty": 0.1},
     {"logit_bias": {3: 1.0}}, {"allowed_token_ids": [3]}, {"temperature": 1.0},
     {"min_tokens": 1, "all_stop_token_ids": {2}}],
)  # fmt: skip
def test_only_a_greedy_request_that_asks_nothing_else_takes_a_rows_best_token(fields):
    assert sampling(temperature=0.0).takes_best
    assert not sampling(**({"temperature": 0.0} | fields)).takes_best


def test_what_is_wanted_stays_until_more_tokens_are_named():
    steady = sampling(temperature=0.7, top_p=0.9, logit_bias={3: 1.0})
    assert steady.want() is steady.want()
    penalized = sampling(presence_penalty=0.1, outputs=[5])
    assert penalized.want().token_ids.tolist() == [5]
