import json

import pytest

from rufus_serve.errors import ModelError
from rufus_serve.model.config_json import read_config
from rufus_serve.model.windows import read_windows


@pytest.fixture
def read(tmp_path):
    def read(model_type, **more):
        raw = {"num_hidden_layers": 4, "model_type": model_type} | more
        (tmp_path / "config.json").write_text(json.dumps(raw))
        return read_windows(read_config(tmp_path))

    return read


@pytest.mark.parametrize(
    ("model_type", "more", "windows"),
    [
        ("llama", {"sliding_window": 8}, (0, 0, 0, 0)),
        ("mistral", {"sliding_window": 8}, (8, 8, 8, 8)),
        ("mistral", {"sliding_window": None}, (0, 0, 0, 0)),
        ("mistral", {}, (4096,) * 4),
        ("mixtral", {}, (0, 0, 0, 0)),
        ("mixtral", {"sliding_window": 8}, (8, 8, 8, 8)),
        ("qwen2", {"sliding_window": 8}, (0, 0, 0, 0)),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
         (0, 0, 0, 8)),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True}, (0, 0, 0, 0)),
        ("qwen3", {"sliding_window": 8, "use_sliding_window": True,
                   "layer_types": ["full_attention", "sliding_attention"] * 2}, (0, 8, 0, 8)),
        ("qwen3_moe", {"sliding_window": 8}, (0, 0, 0, 0)),
        ("qwen3_moe", {"sliding_window": 8, "use_sliding_window": True}, (8, 8, 8, 8)),
    ],
)  # fmt: skip
def test_windows_follow_the_architecture(read, model_type, more, windows):
    assert read(model_type, **more) == windows


def test_layer_types_must_name_every_layer(read):
    with pytest.raises(ModelError, match="layer_types must name 4 times"):
        read("qwen2", use_sliding_window=True, sliding_window=8, layer_types=["full_attention"])


@pytest.mark.parametrize("window", [0, -1, "8", True])
def test_a_window_must_be_a_size(read, window):
    with pytest.raises(ModelError, match="sliding_window must be a positive integer"):
        read("mistral", sliding_window=window)
