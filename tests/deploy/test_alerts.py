"""Alerts and dashboard: they work, and ask for metrics that exist."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

from rufus_serve.metrics import METRICS
from tests.deploy.chart import CHART
from tests.deploy.conftest import need

FILES = CHART / "files"


def test_rules_are_valid_and_fire_when_they_should():
    promtool = need("promtool")
    for command in (
        ["check", "rules", str(FILES / "alerts.yaml")],
        ["test", "rules", str(Path(__file__).parent / "alerts_test.yaml")],
    ):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def metrics_asked_for() -> set[str]:
    text = (FILES / "alerts.yaml").read_text() + (FILES / "dashboard.json").read_text()
    names = re.findall(r"(?:vllm:|rufus_)[a-z0-9_]+", text)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def test_the_group_has_the_metrics_that_are_asked_for():
    asked = {name for name in metrics_asked_for() if name.startswith("rufus_")}
    assert asked
    assert asked <= METRICS.keys()


def test_vllm_has_the_metrics_that_are_asked_for():
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("vLLM is not installed here")
    source = (Path(found.origin).parent / "v1" / "metrics" / "loggers.py").read_text()
    asked = {name for name in metrics_asked_for() if name.startswith("vllm:")}
    known = {name for name in asked if f'"{name.removesuffix("_total")}"' in source}
    assert asked == known


def test_the_dashboard_has_panels_with_queries():
    panels = json.loads((FILES / "dashboard.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert all(target["expr"] for panel in panels for target in panel["targets"])
