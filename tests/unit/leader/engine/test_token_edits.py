import numpy as np
from sampling_rows import parameters

from rufus_serve.leader.engine.token_edits import TokenEdits


def changed(edits: TokenEdits, value: float = 2.0) -> dict[int, float]:
    ids = edits.token_ids
    return dict(zip(ids.tolist(), edits.apply(np.full(len(ids), value, np.float32)), strict=True))


def test_a_request_without_such_parameters_touches_nothing():
    assert TokenEdits(parameters(), [1, 2], [3]).token_ids.tolist() == []


def test_a_bias_is_added():
    assert changed(TokenEdits(parameters(logit_bias={5: 1.5, 9: -100.0}), [], [])) == {
        5: 3.5, 9: -98.0,
    }  # fmt: skip


def test_the_end_is_forbidden_until_enough_tokens_came():
    outputs: list[int] = []
    edits = TokenEdits(parameters(min_tokens=2, all_stop_token_ids={7}), [], outputs)
    assert changed(edits) == {7: -np.inf}
    assert edits.apply(np.ones(1, np.float32), stops_may_come=True).tolist() == [1.0]
    outputs += [1, 1]
    assert changed(edits) == {7: 2.0}


def test_the_last_token_of_a_bad_word_is_forbidden_where_it_would_complete_it():
    outputs = [3]
    edits = TokenEdits(parameters(bad_words_token_ids=[[1, 2], [4]]), [], outputs)
    assert changed(edits) == {2: 2.0, 4: -np.inf}
    outputs.append(1)
    assert changed(edits) == {2: -np.inf, 4: -np.inf}


def test_penalties_follow_the_tokens_as_they_come():
    outputs = [8]
    params = parameters(
        presence_penalty=0.5, frequency_penalty=0.25, repetition_penalty=2.0, logit_bias={8: 1.0}
    )
    edits = TokenEdits(params, [5, 5], outputs)
    assert changed(edits) == {5: 1.0, 8: 1.5 - 0.25 - 0.5}
    outputs += [9, 8]
    assert changed(edits) == {5: 1.0, 8: 1.5 - 0.5 - 0.5, 9: 1.0 - 0.25 - 0.5}
    assert changed(edits, -2.0)[5] == -4.0


def test_of_allowed_tokens_alone_others_are_not_even_looked_at():
    edits = TokenEdits(
        parameters(allowed_token_ids=[4, 2], presence_penalty=1.0, logit_bias={9: 5.0}), [], [2, 9]
    )
    assert edits.only_these
    assert changed(edits) == {2: 1.0, 4: 2.0}


def test_expected_tokens_are_named_before_they_come_and_changed_once_they_have():
    outputs = [8]
    edits = TokenEdits(parameters(presence_penalty=0.5), [5], outputs)
    edits.expect([9, 8, 7])
    ids = edits.token_ids.tolist()
    assert sorted(ids) == [7, 8, 9]
    logits = np.full(3, 2.0, np.float32)
    assert dict(zip(ids, edits.apply(logits), strict=True)) == {8: 1.5, 9: 2.0, 7: 2.0}
    outputs.append(9)
    assert dict(zip(ids, edits.apply(logits), strict=True)) == {8: 1.5, 9: 1.5, 7: 2.0}


def test_without_penalties_expected_tokens_are_not_named():
    edits = TokenEdits(parameters(logit_bias={5: 1.5}), [], [])
    edits.expect([9])
    assert edits.token_ids.tolist() == [5]
