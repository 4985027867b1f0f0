import pytest
from tests.unit.plan.traffic.made import RoundTimes, batching

from rufus_serve.errors import ModelError
from rufus_serve.plan.traffic import sizing
from rufus_serve.plan.traffic.demand import Load, read_lengths
from rufus_serve.plan.traffic.measures import Slo
from rufus_serve.plan.traffic.sizing import (
    Candidate,
    Shape,
    curve,
    least_groups,
    lose_one,
    size,
    size_given,
    try_once,
)

SLO = Slo(ttft_ms=300)


@pytest.fixture(autouse=True)
def _few_requests(monkeypatch):
    monkeypatch.setattr(sizing, "_LEAST_REQUESTS", 500)


def candidate(*, num_nodes=1, batch=4, decode=10.0) -> Candidate:
    return Candidate(
        shape=Shape(num_nodes=num_nodes, max_num_seqs=batch),
        batching=batching(max_num_seqs=batch, num_blocks=1000),
        times=RoundTimes(decode=decode),
        recover_s=10.0,
    )


def load(rate=30.0, *, prompt="50", output="20") -> Load:
    return Load(
        rate=rate, prompt=read_lengths(prompt), output=read_lengths(output), max_model_len=1000
    )


def test_the_least_groups_are_those_whose_full_steps_do_the_work():
    # 50 ms of prefill and 20 tokens of 10 ms among 4 rows: 100 ms each, 30 a second.
    assert least_groups(candidate(), load()) == 3


def test_the_fewest_groups_that_keep_the_slo_are_found():
    (sized,) = size([candidate()], load(), SLO)
    assert sized.num_groups > sized.least_groups
    assert try_once(candidate(), load(), SLO, sized.num_groups).meets
    assert not try_once(candidate(), load(), SLO, sized.num_groups - 1).meets


def test_the_cheapest_shape_comes_first_and_dearer_ones_are_not_tried():
    cheap, dear = candidate(), candidate(num_nodes=4)
    seen = []
    found = size([dear, cheap], load(), SLO, on_shape=seen.append)
    assert [each.shape for each in found] == [cheap.shape, dear.shape]
    assert found[1].reason == "cannot cost less than what was found"
    assert seen == ["1 node, batch 4", "4 nodes, batch 4"]


def test_faster_groups_of_more_nodes_win_where_small_ones_are_too_slow():
    slow, fast = candidate(decode=50.0), candidate(num_nodes=2, decode=5.0)
    found = size([slow, fast], load(), Slo(ttft_ms=300, tpot_ms=40))
    assert found[0].shape == fast.shape
    assert found[1].reason == "a decode takes 50.0 ms, the limit is 40"


@pytest.mark.parametrize(
    ("slo", "reason"),
    [(Slo(tpot_ms=5), "a decode takes 10.0 ms"), (Slo(ttft_ms=20), "a prefill takes 50 ms")],
)
def test_an_slo_that_no_idle_group_keeps_is_refused_with_the_reason(slo, reason):
    with pytest.raises(ModelError, match=reason):
        size([candidate()], load(), slo)


def test_a_limit_of_tpot_alone_does_not_let_the_queue_grow():
    (sized,) = size([candidate()], load(), Slo(tpot_ms=1000))
    assert sized.num_groups >= sized.least_groups
    assert sized.measures.ttft_ms["p99"] < 5000


def test_given_groups_are_taken_as_they_are_and_judged():
    few, many = (size_given([candidate()], load(), SLO, number)[0] for number in (3, 12))
    assert few.reason == "the SLO is not kept"
    assert (many.reason, many.num_groups) == ("", 12)


def test_a_large_fleet_is_tried_as_a_slice_with_its_share():
    found = try_once(candidate(), load(rate=300.0), SLO, 60)
    alone = try_once(candidate(), load(rate=40.0), SLO, 8)
    assert found.measures.ttft_ms == alone.measures.ttft_ms


def test_a_loss_costs_more_in_a_small_fleet_than_in_a_large_one():
    small, large = (lose_one(candidate(), load(), SLO, number) for number in (4, 12))
    assert small.tokens_lost_share > large.tokens_lost_share
    assert small.num_late > small.num_late_without
    assert small.recover_s == 10.0


def test_half_of_two_busy_groups_is_half_of_the_output_while_it_is_away():
    # Two groups could do 20 of these a second, and get 20: one alone does half.
    found = lose_one(candidate(), load(rate=20.0), SLO, 2)
    assert found.tokens_lost_share == pytest.approx(0.5, abs=0.06)


def test_a_curve_has_fewer_and_more_groups_and_falls():
    tries = curve(candidate(), load(), SLO, 5)
    assert [each.num_groups for each in tries] == [4, 5, 6, 8, 10]
    assert tries[0].measures.ttft_ms["p99"] > tries[-1].measures.ttft_ms["p99"]


def test_a_shape_is_named_by_what_tells_it_apart():
    assert Shape(num_nodes=1, max_num_seqs=8).name == "1 node, batch 8"
    hybrid = Shape(num_nodes=2, max_num_seqs=4, cp_degree=2, attention_dp_degree=2)
    assert hybrid.name == "2 nodes, cp 2, dp 2, batch 4"
