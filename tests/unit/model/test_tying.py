import numpy as np
import pytest
from safetensors.numpy import save_file

from rufus_serve.model.tying import EMBEDDING, OUTPUT, embedding_name, holds_both

ROWS = np.arange(24, dtype=np.float32).reshape(6, 4)


@pytest.mark.parametrize(
    ("names", "read"),
    [
        ((EMBEDDING,), EMBEDDING),
        ((EMBEDDING, OUTPUT), EMBEDDING),
        ((OUTPUT,), OUTPUT),
        ((), EMBEDDING),
    ],
)
def test_one_matrix_is_the_embedding_under_either_name(names, read):
    assert embedding_name(names) == read


@pytest.mark.parametrize(
    ("tensors", "both"),
    [
        ({EMBEDDING: ROWS}, False),
        ({OUTPUT: ROWS}, False),
        ({EMBEDDING: ROWS, OUTPUT: ROWS.copy()}, False),
        ({EMBEDDING: ROWS, OUTPUT: ROWS + np.eye(6, 4, dtype=np.float32)}, True),
        ({EMBEDDING: ROWS, OUTPUT: ROWS.astype(np.float16)}, True),
    ],
)
def test_two_matrices_count_only_if_they_differ(tmp_path, tensors, both):
    save_file(tensors, tmp_path / "model.safetensors")
    assert holds_both(tmp_path) is both


def test_without_weights_at_hand_nothing_is_known(tmp_path):
    assert not holds_both(tmp_path)
