"""Rotary position embedding: the frequencies a checkpoint asks for, and their tables."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rufus_serve.errors import ModelError
from rufus_serve.model.rope import rope_kind, rope_settings

SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3")

_NEEDED_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
_ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class RopeConfig:
    """How positions turn into angles."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    original_max_position_embeddings: float = 1.0


def read_rope(raw: Mapping[str, Any]) -> RopeConfig:
    """The rotary settings of a config.json, written by transformers 4 or 5.

    Raises:
        ModelError: the rope type is not supported or lacks a parameter.
    """
    scaling = rope_settings(raw)
    kind = rope_kind(scaling)
    if kind not in SUPPORTED_ROPE_TYPES:
        raise ModelError(
            f"config.json: rope type {kind!r} is not supported; "
            f"supported are {', '.join(SUPPORTED_ROPE_TYPES)}"
        )
    partial = scaling.get("partial_rotary_factor", raw.get("partial_rotary_factor", 1.0))
    if partial not in (None, 1, 1.0):
        raise ModelError(f"config.json: partial_rotary_factor {partial} is not supported, only 1.0")
    theta = _number(scaling.get("rope_theta", raw.get("rope_theta", 10000.0)), "rope_theta")
    # What transformers 5 fills in.
    known = {_ORIGINAL: raw.get("max_position_embeddings"), **scaling}
    needed = {key: _number(known.get(key), f"rope {key}") for key in _NEEDED_KEYS[kind]}
    return RopeConfig(theta=theta, kind=kind, **needed)


def _number(value: object, key: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ModelError(f"config.json: {key} must be a positive number, got {value!r}")
    return float(value)


def inverse_frequencies(rope: RopeConfig, head_size: int) -> torch.Tensor:
    """Angle per position of each pair of a head's channels, float32 [head_size / 2]."""
    exponents = torch.arange(0, head_size, 2, dtype=torch.int64).float() / head_size
    inverse = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return inverse / rope.factor
    if rope.kind == "llama3":
        return _stretch_low_frequencies(rope, inverse)
    return inverse


def _stretch_low_frequencies(rope: RopeConfig, inverse: torch.Tensor) -> torch.Tensor:
    """Llama 3.1's scaling: long waves are stretched, short ones kept, those between blended."""
    wave_length = 2 * math.pi / inverse
    original = rope.original_max_position_embeddings
    low, high = rope.low_freq_factor, rope.high_freq_factor
    blend = (original / wave_length - low) / (high - low)
    blended = (1 - blend) * inverse / rope.factor + blend * inverse
    is_long, is_short = wave_length > original / low, wave_length < original / high
    return torch.where(is_long, inverse / rope.factor, torch.where(is_short, inverse, blended))


def cosines_and_sines(
    rope: RopeConfig, head_size: int, *, num_positions: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every position's angles, float32 [num_positions, head_size / 2] each."""
    frequencies = inverse_frequencies(rope, head_size)
    angles = torch.arange(num_positions).float()[:, None] * frequencies
    return angles.cos(), angles.sin()


class RopeTable:
    """Cosines and sines of every position, computed in float32 and kept in the model's dtype.

    The sine's first half is negated, so that rotating `x` is x * cos + swap_halves(x) * sin.
    """

    def __init__(
        self, rope: RopeConfig, head_size: int, *, num_positions: int, dtype: torch.dtype
    ) -> None:
        cos, sin = cosines_and_sines(rope, head_size, num_positions=num_positions)
        self._cos = torch.cat((cos, cos), dim=-1).to(dtype)
        self._sin = torch.cat((-sin, sin), dim=-1).to(dtype)

    def at(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosine and signed sine, [T, 1, head_size] each."""
        return self._cos[positions].unsqueeze(1), self._sin[positions].unsqueeze(1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """`x` [T, heads, head_size] turned by its position's angles."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin
