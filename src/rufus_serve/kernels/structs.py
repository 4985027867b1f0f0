"""The structures of `csrc/abi.h`, field by field. Legends and shapes are there.

A structure holds addresses, no references: who fills one keeps the tensors alive.
"""

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ABI_VERSION = 5
"""What `csrc/library.cpp` must say of itself."""

_INT = ctypes.c_int64
_POINTER = ctypes.c_void_p


class Weight(ctypes.Structure):
    """A packed weight; see `packing`."""

    _fields_ = (
        ("panels", _POINTER), ("scales", _POINTER), ("bias", _POINTER), ("num_inputs", _INT),
        ("num_panels", _INT),
    )  # fmt: skip


class Model(ctypes.Structure):
    """Sizes of what a follower holds, and the tables of rotary positions."""

    _fields_ = (
        ("hidden_size", _INT), ("head_size", _INT), ("num_q_heads", _INT), ("num_kv_heads", _INT),
        ("inner_size", _INT), ("rms_norm_eps", ctypes.c_float), ("cos", _POINTER),
        ("sin", _POINTER), ("num_positions", _INT),
    )  # fmt: skip


class Layer(ctypes.Structure):
    """Weights of one decoder layer."""

    _fields_ = (
        ("input_norm", _POINTER), ("qkv", Weight), ("q_norm", _POINTER), ("k_norm", _POINTER),
        ("output", Weight), ("mlp_norm", _POINTER), ("gate_up", Weight), ("down", Weight),
        ("window", _INT),
    )  # fmt: skip


class Cache(ctypes.Structure):
    """Keys and values of one layer."""

    _fields_ = (("slots", _POINTER), ("num_slots", _INT), ("block_size", _INT))


class Step(ctypes.Structure):
    """One step's arrays, the same for all layers."""

    _fields_ = (
        ("num_tokens", _INT), ("num_sequences", _INT), ("starts", _POINTER),
        ("positions", _POINTER), ("slots", _POINTER), ("blocks", _POINTER),
        ("blocks_per_sequence", _INT), ("hidden", _POINTER), ("delta", _POINTER),
    )  # fmt: skip


class Candidates(ctypes.Structure):
    """What is asked of rows of logits, and where the answer goes."""

    _fields_ = (
        ("logits", _POINTER), ("num_rows", _INT), ("vocab_size", _INT), ("first_id", _INT),
        ("counts", _POINTER), ("temperatures", _POINTER), ("named_counts", _POINTER),
        ("named", _POINTER), ("best", _POINTER), ("ids", _POINTER), ("totals", _POINTER),
        ("named_logits", _POINTER), ("held", _POINTER),
    )  # fmt: skip


class DrawParams(ctypes.Structure):
    """How a row is drawn."""

    _fields_ = (
        ("top_p", ctypes.c_double), ("min_p", ctypes.c_double), ("temperature", ctypes.c_float),
        ("top_k", ctypes.c_int32), ("flags", _INT),
    )  # fmt: skip


class Draws(ctypes.Structure):
    """What is known of rows whose tokens are to be drawn."""

    _fields_ = (
        ("num_rows", _INT), ("counts", _POINTER), ("logits", _POINTER), ("ids", _POINTER),
        ("totals", _POINTER), ("named_counts", _POINTER), ("named", _POINTER),
        ("named_logits", _POINTER), ("params", _POINTER), ("uniforms", _POINTER),
        ("masks", _POINTER), ("words_per_mask", _INT), ("mask_places", _POINTER),
        ("tokens", _POINTER),
    )  # fmt: skip


def address_of(tensor: "torch.Tensor | None") -> int | None:
    """Address of a contiguous tensor's first element; null for None."""
    if tensor is None:
        return None
    assert tensor.is_contiguous(), tensor.shape
    return tensor.data_ptr()
