import numpy as np
import pytest
from msgspec.structs import replace

from rufus_serve.kernels.candidate_draw import CandidateDraw, KnownLogits, draw_params

GREEDY = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "is_greedy": True,
          "only_named": False, "needs_total": False}  # fmt: skip
RANDOM = GREEDY | {"is_greedy": False, "needs_total": True}


def known(**fields) -> KnownLogits:
    """Two rows: 3 candidates and a named token, and 1 candidate."""
    usual = {
        "counts": [3, 1], "logits": [2.0, 1.0, 0.0, 5.0], "ids": [7, 3, 9, 4],
        "log_totals": [[np.log(np.exp([2.0, 1.0, 0.0]).sum() + 0.5), 0.0], [5.0, 0.0]],
        "num_named": [1, 0], "named_ids": [8], "named_logits": [1.5],
    }  # fmt: skip
    types = {"logits": np.float32, "named_logits": np.float32, "log_totals": np.float64}
    return KnownLogits(**{
        name: np.array(value, types.get(name, np.int32))
        for name, value in (usual | fields).items()
    })  # fmt: skip


@pytest.fixture
def draw(kernels):
    def tokens(params, uniforms=(0.5, 0.5), rows=None, **masks):
        kernel = CandidateDraw(kernels)
        every = [draw_params(**each) for each in params]
        return kernel.tokens(rows or known(), every, np.array(uniforms), **masks).tolist()

    return tokens


def test_the_best_token_is_a_named_one_where_parameters_made_it_that(draw):
    assert draw([GREEDY, GREEDY]) == [7, 4]
    assert draw([GREEDY, GREEDY], rows=known(named_logits=[3.0])) == [8, 4]


def test_a_number_points_at_tokens_in_falling_order_and_beyond_the_known_ones(draw):
    weights = np.exp([2.0, 1.5, 1.0, 0.0])
    ends = weights.cumsum() / (weights.sum() + 0.5)
    for end, token in zip(ends, (7, 8, 3, 9), strict=True):
        assert draw([RANDOM, GREEDY], [end - 1e-6, 0.0])[0] == token
    assert draw([RANDOM, GREEDY], [ends[-1] + 1e-6, 0.0])[0] == -1


def test_filters_keep_the_first_tokens(draw):
    assert draw([RANDOM | {"top_k": 2}, GREEDY], [0.999, 0.0])[0] == 8
    assert draw([RANDOM | {"top_p": 0.5}, GREEDY], [0.999, 0.0])[0] == 8
    assert draw([RANDOM | {"min_p": 0.5}, GREEDY], [0.999, 0.0])[0] == 8
    # A fourth one may be as good as those.
    assert draw([RANDOM | {"top_k": 4}, GREEDY], [0.0, 0.0])[0] == -1


def test_nothing_but_named_tokens_may_come_where_they_alone_are_allowed(draw):
    assert draw([RANDOM | {"only_named": True}, GREEDY], [0.999, 0.0]) == [8, 4]


def test_a_mask_leaves_what_its_bits_allow(draw):
    masks = {"words": np.array([[1 << 3]], np.int32), "places": np.array([0, -1], np.int32)}
    assert draw([GREEDY, GREEDY], **masks) == [3, 4]
    masks["words"][:] = 1 << 20
    assert draw([GREEDY, GREEDY], **masks) == [-1, 4]


def test_a_token_beyond_the_mask_is_not_allowed(draw):
    masks = {"words": np.full((1, 1), -1, np.int32), "places": np.array([0, -1], np.int32)}
    for wild in (1 << 30, -5, 32):
        assert draw([GREEDY, GREEDY], rows=known(ids=[wild, 3, 9, 4]), **masks) == [8, 4]


@pytest.mark.parametrize(
    "fields",
    [{"counts": [3, 2]}, {"counts": [5, -1]}, {"counts": [4]}, {"num_named": [2, 0]},
     {"ids": [7, 3, 9]}, {"log_totals": [[0.0], [0.0]]}],
)  # fmt: skip
def test_what_is_not_of_the_same_rows_is_refused(draw, fields):
    with pytest.raises(ValueError, match="does not fit"):
        draw([GREEDY, GREEDY], rows=replace(known(), **{
            name: np.array(value, getattr(known(), name).dtype) for name, value in fields.items()
        }))  # fmt: skip


def test_a_mask_that_is_not_there_is_refused(draw):
    with pytest.raises(ValueError, match="does not fit"):
        draw([GREEDY, GREEDY], places=np.array([0, -1], np.int32))
