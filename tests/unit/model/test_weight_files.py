import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

from rufus_serve.errors import ModelError
from rufus_serve.model.weight_files import (
    INDEX,
    files_at_hand,
    read_header,
    stale_file,
    tensor_files,
    weights_bytes,
)


def store(path, **values):
    save_file({name: np.full(3, value, np.float32) for name, value in values.items()}, path)


def indexed(folder, **weight_map):
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def test_without_an_index_there_is_one_file(tmp_path):
    store(tmp_path / "model.safetensors", a=1)
    store(tmp_path / "consolidated.safetensors", a=1)
    assert tensor_files(tmp_path) == {"a": tmp_path / "model.safetensors"}
    assert files_at_hand(tmp_path) == [tmp_path / "model.safetensors"]


def test_of_two_copies_of_a_tensor_the_index_decides(tmp_path):
    store(tmp_path / "new.safetensors", a=1)
    store(tmp_path / "old.safetensors", a=2, b=2)
    indexed(tmp_path, a="new.safetensors", b="old.safetensors")
    assert tensor_files(tmp_path)["a"].name == "new.safetensors"


def test_a_single_file_beside_an_index_that_does_not_name_it_is_stale(tmp_path):
    single = tmp_path / "model.safetensors"
    store(single, a=1)
    assert stale_file(tmp_path) is None
    store(tmp_path / "part.safetensors", a=2)
    indexed(tmp_path, a="part.safetensors")
    assert stale_file(tmp_path) == single
    indexed(tmp_path, a="model.safetensors")
    assert stale_file(tmp_path) is None


def test_only_files_of_the_checkpoint_are_counted(tmp_path):
    assert weights_bytes(tmp_path) == 0
    store(tmp_path / "part.safetensors", a=2)
    store(tmp_path / "consolidated.safetensors", a=2, b=2)
    indexed(tmp_path, a="part.safetensors")
    assert weights_bytes(tmp_path) == (tmp_path / "part.safetensors").stat().st_size


def test_an_index_may_lie_alone_but_not_with_some_of_its_files(tmp_path):
    indexed(tmp_path, a="1.safetensors", b="2.safetensors")
    assert files_at_hand(tmp_path) == []
    store(tmp_path / "1.safetensors", a=1)
    with pytest.raises(ModelError, match=r"2\.safetensors: missing"):
        files_at_hand(tmp_path)


def test_no_weights_are_told(tmp_path):
    with pytest.raises(ModelError, match=r"neither model\.safetensors nor"):
        tensor_files(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "\udcff"])
def test_an_index_that_is_none_is_told(tmp_path, text):
    (tmp_path / INDEX).write_text(text, errors="surrogateescape")
    with pytest.raises(ModelError, match="not a safetensors index"):
        tensor_files(tmp_path)


def test_an_index_stays_within_its_folder(tmp_path):
    indexed(tmp_path, a="../a.safetensors")
    with pytest.raises(ModelError, match=re.escape("outside of its folder: ['../a.safetensors']")):
        tensor_files(tmp_path)


def test_a_header_says_where_each_tensor_lies(tmp_path):
    path = tmp_path / "model.safetensors"
    store(path, a=1, b=2)
    stored = read_header(path)["b"]
    assert (stored.dtype, stored.shape) == ("F32", (3,))
    found = np.frombuffer(path.read_bytes()[stored.start : stored.stop], np.float32)
    assert found.tolist() == [2, 2, 2]
