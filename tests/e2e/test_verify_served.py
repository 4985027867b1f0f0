"""`rufus-serve verify` that serves the model itself: each number format against float32."""

from pathlib import Path

import pytest
import torch

from rufus_serve.cli.main import main
from tests.e2e.server import DEMO_MODEL


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Several threads wait for each other while servers of other tests end.
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("reference") / "reference.json"
    assert main(["verify", str(DEMO_MODEL), f"--make={path}", "--tokens=8"]) == 0
    return path


@pytest.mark.parametrize(
    "flags",
    [("--dtype=bfloat16",), ("--dtype=bfloat16", "--weights=int8"), ("--cpu.strict-neuron",)],
    ids=["bfloat16", "int8", "strict"],
)
def test_what_is_served_is_the_model(reference: Path, flags: tuple[str, ...]) -> None:
    settings = ("--max-model-len=512", "--buckets.prefill=512", "--cluster.kind=local")
    assert main(["verify", str(DEMO_MODEL), f"--against={reference}", *settings, *flags]) == 0


def test_another_model_is_told_apart(reference: Path, tiny_model: Path) -> None:
    assert main(["verify", str(tiny_model), f"--against={reference}", "--cluster.kind=local"]) == 17
