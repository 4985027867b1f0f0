from pathlib import Path

import pytest

from rufus_serve.metrics import METRICS, family, histogram, reference

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_is_made_of_the_table() -> None:
    assert PAGE.read_text() == reference(), "run `make docs`"


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
def test_names_follow_the_rules_of_prometheus(metric) -> None:
    assert metric.name.startswith("rufus_")
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    if metric.unit in ("seconds", "bytes"):
        assert metric.unit in metric.name
    assert metric.help.endswith(".")


def test_a_histogram_adds_its_buckets_up() -> None:
    found = histogram("rufus_step_seconds", (0.1, 1.0), [(("0", "decode"), [1, 2, 3], 9.0)])
    values = {sample.labels.get("le", sample.name): sample.value for sample in found.samples}
    assert (values["0.1"], values["1"], values["+Inf"]) == (1.0, 3.0, 6.0)
    assert values["rufus_step_seconds_sum"] == 9.0


def test_a_counter_is_asked_for_with_total() -> None:
    (sample,) = family("rufus_rows_in_full_total", {("1",): 4.0}).samples
    assert (sample.name, sample.labels, sample.value) == (
        "rufus_rows_in_full_total", {"group": "1"}, 4.0,
    )  # fmt: skip
