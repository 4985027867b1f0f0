"""Whether a checkpoint's output layer is its embedding, as transformers 5 decides it.

`tie_word_embeddings` asks for one matrix. Of files that hold two different ones both are used; of
files that hold one, it is that one, under either name.
"""

from collections.abc import Container
from pathlib import Path

from rufus_serve.model.weight_files import (
    StoredTensor,
    files_at_hand,
    read_header,
    tensor_files,
)

EMBEDDING = "model.embed_tokens.weight"
OUTPUT = "lm_head.weight"

_CHUNK_BYTES = 1 << 24


def embedding_name(names: Container[str]) -> str:
    """The tensor to read the embedding from, of a checkpoint that holds `names`."""
    return OUTPUT if OUTPUT in names and EMBEDDING not in names else EMBEDDING


def holds_both(folder: Path) -> bool:
    """Whether the files at hand hold an embedding and an output layer that differ.

    Raises:
        ModelError: a file is damaged or missing.
    """
    if not files_at_hand(folder):
        return False
    path_of = tensor_files(folder)
    if EMBEDDING not in path_of or OUTPUT not in path_of:
        return False
    first, second = path_of[EMBEDDING], path_of[OUTPUT]
    ours, theirs = read_header(first)[EMBEDDING], read_header(second)[OUTPUT]
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return True
    return not _same_bytes(first, ours, second, theirs)


def _same_bytes(first: Path, ours: StoredTensor, second: Path, theirs: StoredTensor) -> bool:
    """Whether two tensors of one size hold the same."""
    with first.open("rb") as left, second.open("rb") as right:
        left.seek(ours.start)
        right.seek(theirs.start)
        for done in range(0, ours.stop - ours.start, _CHUNK_BYTES):
            size = min(_CHUNK_BYTES, ours.stop - ours.start - done)
            if left.read(size) != right.read(size):
                return False
    return True
