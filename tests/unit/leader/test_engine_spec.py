import os

import pytest

from rufus_serve.errors import LeaderError
from rufus_serve.leader.engine_spec import ENGINE_VARIABLE, EngineSpec


def test_an_engine_process_finds_its_own_spec(monkeypatch):
    monkeypatch.setenv(ENGINE_VARIABLE, "")
    spec = EngineSpec.new(3, "/run/x")
    spec.enter_environment()
    assert EngineSpec.from_environment() == spec
    assert (spec.group, spec.api_pid) == (3, os.getpid())


def test_every_incarnation_has_paths_of_its_own():
    one, other = EngineSpec.new(0, "/run/x"), EngineSpec.new(0, "/run/x")
    assert one.path("input") != other.path("input")
    assert one.address("input") == f"ipc://{one.path('input')}"


def test_any_other_process_is_told_that_it_is_none(monkeypatch):
    monkeypatch.delenv(ENGINE_VARIABLE, raising=False)
    with pytest.raises(LeaderError, match="no engine process"):
        EngineSpec.from_environment()
