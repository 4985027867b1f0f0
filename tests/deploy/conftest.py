import importlib
import os
from types import ModuleType

import pytest

from tests.deploy.chart import MAJORS, tool

REQUIRED = os.environ.get("CI") == "true"
"""In CI a missing tool is a failure: a suite that skips proves nothing."""


@pytest.fixture(params=MAJORS)
def major(request: pytest.FixtureRequest) -> str:
    """A major version of Helm that is installed."""
    need(f"helm{request.param}")
    return str(request.param)


@pytest.fixture
def helm() -> None:
    """Helm 4 is installed."""
    need("helm4")


def need(name: str) -> str:
    """The tool's path; without it the test is skipped, or fails in CI."""
    path = tool(name)
    if not path.exists():
        absent(f"{name} is not in {path.parent}: run deploy/helm/get-tools.sh")
    return str(path)


def need_module(name: str) -> ModuleType:
    """The module; without it the test is skipped, or fails in CI."""
    try:
        return importlib.import_module(name)
    except ImportError:
        absent(f"{name} is not installed here")
        raise


def absent(reason: str) -> None:
    """Skip the test, or fail it in CI."""
    (pytest.fail if REQUIRED else pytest.skip)(reason)


def need_root() -> None:
    """Commands of containers are run as their users, which takes root; CI's runners have it not."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become the containers' users")
