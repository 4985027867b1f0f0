import pytest

from rufus_serve.verify.endpoint import choices_of


def test_ids_come_in_place_of_texts():
    (found,) = choices_of(
        {
            "tokens": ["token_id:7"],
            "token_logprobs": [-0.5],
            "top_logprobs": [{"token_id:9": -0.25, "token_id:7": -0.5}],
        }
    )
    assert (found.token, found.logprob, found.top) == (7, -0.5, {9: -0.25, 7: -0.5})


def test_texts_are_refused():
    with pytest.raises(ValueError, match="'the' is no token_id:N"):
        choices_of({"tokens": ["the"], "token_logprobs": [-1], "top_logprobs": [{"the": -1}]})
