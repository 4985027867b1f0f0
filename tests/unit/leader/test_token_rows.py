from rufus_serve.leader.token_rows import refusal


def test_tokens_that_the_model_has_rows_for_are_fine():
    assert refusal("prompt", [0, 5, 99], 100) == ""
    assert refusal("prompt", [], 100) == ""


def test_a_token_beyond_the_model_is_named_with_the_models_size():
    reason = refusal("bad_words", [7, 100, 100, 250], 100)
    assert "bad_words holds token 100, 250," in reason
    assert "100 tokens" in reason


def test_a_long_list_is_cut():
    assert "105, 106, …" not in refusal("prompt", range(100, 200), 100)
    assert "103, 104, …" in refusal("prompt", range(100, 200), 100)
