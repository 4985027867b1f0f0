import pytest
import torch
from tests.unit.shard.test_fused_decoder import MODEL

from rufus_serve.config.schema import ServeConfig
from rufus_serve.kernels.library import KernelsUnavailable
from rufus_serve.runtime.cpu import decoders


def choose(monkeypatch, *, dtype=torch.bfloat16, built=True, **cpu):
    def load_library():
        if not built:
            raise KernelsUnavailable("not built")
        return "the library"

    monkeypatch.setattr(decoders, "load_library", load_library)
    config = ServeConfig(model="folder", runtime="cpu", cpu=cpu)
    return decoders.choose_library(config, MODEL, dtype)


def test_bfloat16_takes_kernels_where_there_are_any(monkeypatch):
    assert choose(monkeypatch) == "the library"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dtype": torch.float32}, "float32"),
        ({"kernels": "torch"}, "cpu.kernels"),
        ({"built": False}, "not built"),
    ],
)
def test_otherwise_it_says_why_torch_computes(monkeypatch, settings, words):
    with pytest.raises(KernelsUnavailable, match=words):
        choose(monkeypatch, **settings)
