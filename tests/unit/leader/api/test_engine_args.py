import json
from types import SimpleNamespace

import pytest

from rufus_serve.config import ServeConfig
from rufus_serve.errors import ConfigError
from rufus_serve.leader.api.engine_args import _own_words, check_option, served_name, words_of

KNOWN = {"enable_auto_tool_choice", "tool_call_parser", "quantization", "enable_lora", "seed"}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tensor_parallel_size", 2, "`nodes`"),
        ("dtype", "float16", "`dtype`"),
        ("max_model_len", 10, "`max_model_len`"),
        ("quantization", "fp8", "unquantized"),
        ("kv_cache_dtype", "fp8", "KV cache"),
        ("enable_lora", True, "adapters"),
        ("hf_token", "hf_secret", "needs none"),
        ("data_parallel_size", 2, "groups of followers"),
        ("speculative_config", {"method": "ngram"}, "`speculation`"),
        ("spec_model", "small", "`speculation.draft_model`"),
        ("enable_auto_tool_chioce", True, "did you mean enable_auto_tool_choice"),
    ],
)
def test_refused_options_say_what_to_do(name: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_option(name, value, known=KNOWN)


@pytest.mark.parametrize(
    ("name", "value"),
    [("enable_auto_tool_choice", True), ("quantization", None), ("enable_lora", False)],
)
def test_harmless_options_pass(name: str, value: object) -> None:
    check_option(name, value, known=KNOWN)


@pytest.mark.parametrize(
    ("strings", "value", "word"),
    [
        (["--enable-x", "--no-enable-x"], True, "--enable-x"),
        (["--enable-x", "--no-enable-x"], False, "--no-enable-x"),
        (["--enable-x", "--disable-x"], True, "--enable-x"),
        (["--enable-x", "--disable-x"], False, "--disable-x"),
        (["--disable-x", "--no-disable-x"], True, "--disable-x"),
        (["--disable-x", "--no-disable-x"], False, "--no-disable-x"),
    ],
)
def test_a_switch_is_written_as_vllm_reads_it(strings: list[str], value: bool, word: str) -> None:
    name = strings[0].strip("-").replace("-", "_")
    action = SimpleNamespace(option_strings=strings, nargs=0, dest=name)
    assert words_of(action, value) == [word]


def test_the_model_is_called_by_its_folder_unless_it_has_a_name() -> None:
    assert served_name(ServeConfig(model="/models/llama")) == "llama"
    assert served_name(ServeConfig(model="/models/llama", served_model_name="big")) == "big"


def test_with_a_draft_model_in_the_graphs_requests_are_greedy_by_default() -> None:
    speculation = {"method": "fused", "draft_model": "small", "num_speculative_tokens": 3}
    config = ServeConfig.model_validate({"model": "m", "speculation": speculation})
    words = list(_own_words(config))
    told = json.loads(words[words.index("--speculative-config") + 1])
    assert told["num_speculative_tokens"] == 3
    assert "draft_model" not in told
    defaults = json.loads(words[words.index("--override-generation-config") + 1])
    assert defaults["temperature"] == 0.0
