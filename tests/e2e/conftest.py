"""Servers and references that several end-to-end tests share."""

from collections.abc import Iterator

import pytest

from tests.e2e.server import DEMO_MODEL, Server, serving


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/e2e" in item.path.as_posix():
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def demo_server() -> Iterator[Server]:
    """The demo model in float32 on two followers under Ray."""
    if not DEMO_MODEL.is_dir():
        pytest.fail(f"no demo model at {DEMO_MODEL}; run `make demo-model`")
    with serving(DEMO_MODEL, "--nodes=2", "--dtype=float32", "--max-model-len=1024") as server:
        yield server
