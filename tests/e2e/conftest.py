"""Servers and references that several end-to-end tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.models import tiny_checkpoint
from tests.e2e.server import DEMO_MODEL, Server, serving, shadowing


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/e2e" in item.path.as_posix():
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(300))


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model in float32 on two followers under Ray, started in an unlucky folder."""
    if not DEMO_MODEL.is_dir():
        pytest.fail(f"no demo model at {DEMO_MODEL}; run `make demo-model`")
    tools = '{"enable_auto_tool_choice": true, "tool_call_parser": "hermes"}'
    flags = ("--nodes=2", "--dtype=float32", "--max-model-len=1024", f"--vllm-args={tools}")
    cwd = shadowing(tmp_path_factory.mktemp("cwd"))
    with serving(DEMO_MODEL, *flags, cwd=cwd) as server:
        yield server


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that starts and answers fast."""
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "llama", "llama")
