import pytest
from tests.unit.plan.test_plan import asked
from tests.unit.plan.traffic.made import batching

from rufus_serve.errors import ConfigError
from rufus_serve.plan.latency import decode_estimate
from rufus_serve.plan.plan import make_plan
from rufus_serve.plan.traffic.step_times import (
    DecodePoint,
    Grid,
    Measured,
    MeasuredTimes,
    PlannedTimes,
    PrefillPoint,
    by_groups,
    read_measured,
)

POINTS = [(x, y, 10.0 * x + y) for x in (1, 2, 8) for y in (0, 100)]


def measured(**fields) -> Measured:
    usual = {
        "batching": batching(),
        "prefill": (PrefillPoint(64, 30.0), PrefillPoint(128, 50.0)),
        "decode": (DecodePoint(1, 128, 10.0), DecodePoint(8, 128, 17.0)),
    }
    return Measured(**(usual | fields))


@pytest.mark.parametrize(("x", "y"), [(1, 0), (8, 100), (5, 50), (1.5, -10), (20, 300)])
def test_a_grid_of_a_bilinear_function_is_that_function(x, y):
    assert Grid.of(POINTS, "decode").at(x, y) == pytest.approx(10 * x + y)


def test_a_grid_with_one_mark_on_an_axis_does_not_depend_on_it():
    grid = Grid.of([(64, 0, 30.0), (128, 0, 50.0)], "prefill")
    assert grid.at(96, 0) == grid.at(96, 999) == 40.0


def test_no_time_is_below_zero():
    assert Grid.of([(64, 0, 1.0), (128, 0, 50.0)], "prefill").at(1, 0) == 0.0


def test_a_missing_cell_is_named():
    with pytest.raises(ConfigError, match=r"decode needs a time for every pair.*\(8, 100\)"):
        Grid.of(POINTS[:-1], "decode")


def test_measured_decodes_go_by_rows_and_mean_context():
    times = MeasuredTimes(measured())
    assert times.decode_ms([100]) == 10.0
    assert times.decode_ms([100] * 8) == 17.0
    assert times.prefill_ms(96, 0) == 40.0


def test_planned_steps_are_as_long_as_their_buckets_and_all_rows():
    plan = make_plan(asked(max_num_seqs=4, max_model_len=2048))
    times = PlannedTimes(plan)
    assert times.prefill_ms(129, 0) == times.prefill_ms(255, 0) > times.prefill_ms(120, 0)
    full = decode_estimate(plan.placement, rows=4, context=2048).max_ms
    assert times.decode_ms([2000]) == full
    assert times.decode_ms([100]) < full


def test_a_file_of_measured_times_is_read(tmp_path):
    path = tmp_path / "steps.json"
    path.write_text(
        '{"batching": {"max_num_seqs": 8, "largest_prefill": 512, "prefill_tokens_per_step": 512,'
        ' "num_blocks": 64}, "prefill": [{"tokens": 64, "ms": 30}],'
        ' "decode": [{"rows": 1, "context": 128, "ms": 9.5}], "front_ms": 4}'
    )
    found = read_measured(path)
    assert found.front_ms == 4.0
    assert found.batching.kv_tokens == 64 * 32


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "cannot be read"), ("{", "holds no measured"), ('{"decode": []}', "missing required"),
     ('{"batchin": 1}', "unknown field `batchin`"),
     ('{"prefill": [{"tokens": 64, "ms": 30, "groups": 0}]}', "`int` >= 1")],
)  # fmt: skip
def test_a_file_that_is_none_is_refused(tmp_path, text, message):
    path = tmp_path / "steps.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_measured(path)


def test_times_with_more_groups_at_work_are_their_own():
    points = measured()
    slow = measured(
        prefill=(*points.prefill, PrefillPoint(64, 90.0, groups=2)),
        decode=(*points.decode, DecodePoint(1, 128, 25.0, groups=2)),
    )
    alone, together = by_groups(slow)
    assert (alone.decode_ms([100]), together.decode_ms([100])) == (10.0, 25.0)
    assert (alone.prefill_ms(64, 0), together.prefill_ms(64, 0)) == (30.0, 90.0)


def test_a_number_of_groups_without_times_is_named():
    points = measured()
    gap = measured(decode=(*points.decode, DecodePoint(1, 128, 25.0, groups=3)))
    with pytest.raises(ConfigError, match="prefill of 2 groups needs a time"):
        by_groups(gap)
