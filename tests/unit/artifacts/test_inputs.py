"""`ARTIFACT_SETTINGS` names every setting that changes the identity of artifacts."""

import json
from pathlib import Path
from typing import Any

import pytest

from rufus_serve.artifacts.inputs import ARTIFACT_SETTINGS
from rufus_serve.config.schema import ServeConfig
from rufus_serve.config.settings import Setting, all_settings
from rufus_serve.errors import RufusError

pytestmark = pytest.mark.heavy

MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256,
    "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 8, "vocab_size": 1024, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096, "rope_theta": 10000.0, "hidden_act": "silu",
    "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
BLOCK = {"neuron.kv_layout": "block", "num_blocks": 80}
"""A layout in which more settings count."""


def identity_key(folder: Path, runtime: str, changes: dict[str, Any]) -> str:
    from rufus_serve.compiler.compile import make_builder

    tree: dict[str, Any] = {
        "model": str(folder), "runtime": runtime, "nodes": 2, "max_model_len": 1024,
        "buckets": {"prefill": [64, 1024]},
    }  # fmt: skip
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = tree
        for each in sections:
            section = section.setdefault(each, {})
        section[name] = value
    return make_builder(ServeConfig.model_validate(tree)).identity().key


def other_value(setting: Setting) -> Any:
    if setting.key == "neuron.neuron_config":
        return {"fused_qkv": True}
    if setting.choices:
        return next(choice for choice in setting.choices if choice != setting.default)
    if setting.is_bool:
        return not setting.default
    if setting.is_list:
        return [128, 2048]
    if setting.is_mapping:
        return {"seed": 1}
    known = {"nodes": 4, "max_model_len": 512, "num_blocks": 96, "block_size": 64}
    if setting.key in known:
        return known[setting.key]
    return 2 * (setting.default or 32) if isinstance(setting.default, int | float) else "x"


def key_or_refusal(folder: Path, runtime: str, changes: dict[str, Any]) -> str:
    """Empty for settings that nothing can be made for."""
    try:
        return identity_key(folder, runtime, changes)
    except (RufusError, ValueError):
        return ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    return tmp_path


@pytest.mark.parametrize("runtime", ARTIFACT_SETTINGS)
def test_a_setting_that_is_not_named_changes_no_artifact(folder: Path, runtime: str) -> None:
    before = identity_key(folder, runtime, {})
    in_blocks = identity_key(folder, runtime, BLOCK)
    changed = set()
    for setting in all_settings().values():
        if setting.key == "model":
            continue
        change = {setting.key: other_value(setting)}
        for base, expected in (({}, before), (BLOCK, in_blocks)):
            if key_or_refusal(folder, runtime, {**base, **change}) not in (expected, ""):
                changed.add(setting.key)
    assert changed - set(ARTIFACT_SETTINGS[runtime]) == set()
    assert changed
