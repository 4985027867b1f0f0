"""Rotary settings of both generations of config.json, and the rotation itself."""

import math

import pytest
import torch

from rufus_serve.errors import ModelError
from rufus_serve.shard.rope import RopeConfig, RopeTable, inverse_frequencies, read_rope, rotate

LLAMA3 = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize(
    "raw",
    [
        {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"rope_type": "llama3"}},
        {"rope_theta": 5e5, "rope_scaling": LLAMA3 | {"type": "llama3"}},
        {"rope_parameters": LLAMA3 | {"rope_type": "llama3", "rope_theta": 5e5}},
    ],
)
def test_both_generations_read_the_same(raw):
    assert read_rope(raw) == RopeConfig(theta=5e5, kind="llama3", **LLAMA3)


def test_nothing_said_is_the_default():
    assert read_rope({"rope_scaling": None}) == RopeConfig(theta=10000.0)


@pytest.mark.parametrize("kind", ["yarn", "longrope", "dynamic", "mrope"])
def test_other_types_are_refused_by_name(kind):
    with pytest.raises(ModelError, match=f"{kind}.*default, linear, llama3"):
        read_rope({"rope_scaling": {"rope_type": kind, "factor": 2.0}})


def test_llama3_keeps_short_waves_and_stretches_long_ones():
    plain = inverse_frequencies(RopeConfig(theta=5e5), 128)
    scaled = inverse_frequencies(RopeConfig(theta=5e5, kind="llama3", **LLAMA3), 128)
    wave = 2 * math.pi / plain
    short, long = wave < 8192 / 4, wave > 8192
    assert torch.equal(scaled[short], plain[short])
    assert torch.equal(scaled[long], plain[long] / 8)
    between = ~short & ~long
    assert between.any()
    assert ((scaled[between] <= plain[between]) & (scaled[between] >= plain[between] / 8)).all()


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    table = RopeTable(RopeConfig(theta=100.0), 8, num_positions=50, dtype=torch.float32)
    query, key = torch.randn(2, 1, 1, 8, generator=torch.Generator().manual_seed(0))

    def score(query_at, key_at):
        turned = rotate(query, *table.at(torch.tensor([query_at])))
        assert turned.norm() == pytest.approx(query.norm().item(), rel=1e-5)
        return float((turned * rotate(key, *table.at(torch.tensor([key_at])))).sum())

    assert score(7, 3) == pytest.approx(score(44, 40), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(7, 4), abs=1e-2)
