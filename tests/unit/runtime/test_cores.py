import os
from pathlib import Path

import pytest

from rufus_serve.runtime.cores import available_cores


@pytest.mark.parametrize(
    ("quota", "cores"), [("50000 100000", 1), ("150000 100000", 2), ("max 100000", 12), ("", 12)]
)
def test_a_containers_quota_bounds_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    (tmp_path / "cpu.max").write_text(quota)
    assert available_cores(cgroup=tmp_path) == cores


def test_the_older_cgroups_quota_counts_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    (tmp_path / "cpu").mkdir()
    for name, value in (("quota", "300000"), ("period", "100000")):
        (tmp_path / "cpu" / f"cpu.cfs_{name}_us").write_text(value)
    assert available_cores(cgroup=tmp_path) == 3
