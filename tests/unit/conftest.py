"""`--light`: the unit tests where only the package's own dependencies are installed.

A module that needs more (torch, Ray, vLLM, ...) is then skipped with the reason, and so is a
test marked `heavy`. Without the option a missing package is an error, as it should be in CI.

Property tests try the same examples in every run; `--hypothesis-profile=default` draws new ones.
"""

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--light", action="store_true", help="skip what needs torch, Ray or vLLM")


class LightModule(pytest.Module):
    """A test module that is skipped if a package it imports is not installed."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        try:
            return super().collect()
        except self.CollectError as error:
            missing = error.__cause__
            if not isinstance(missing, ModuleNotFoundError):
                raise
            pytest.skip(f"heavy: needs {missing.name}", allow_module_level=True)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    if parent.config.getoption("--light"):
        return LightModule.from_parent(parent, path=module_path)
    return None


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.config.getoption("--light") and item.get_closest_marker("heavy"):
        pytest.skip("heavy: needs torch, Ray or vLLM")
