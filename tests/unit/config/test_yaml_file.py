import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rufus_serve.config import yaml_file
from rufus_serve.errors import ConfigError


def read(folder: Path, content: str | bytes):
    file = folder / "s.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return yaml_file.read(file, free=frozenset({"vllm_args"}))


def refusal(folder: Path, content: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        read(folder, content)
    message = str(caught.value)
    assert "\n" not in message
    return message.replace(f"{folder}/", "")


def test_values_remember_their_line(tmp_path: Path):
    found = read(tmp_path, "nodes: 2\n\ncluster:\n  kind: local\nvllm_args:\n  a: {b: 1}\n")
    assert {key: each.value for key, each in found.items()} == {
        "nodes": 2,
        "cluster.kind": "local",
        "vllm_args": {"a": {"b": 1}},
    }
    assert found["cluster.kind"].place.endswith("s.yaml:4")


def test_a_syntax_error_has_line_and_column(tmp_path: Path):
    assert refusal(tmp_path, "nodes: 1\nport: [1, 2\n").startswith("s.yaml:3:1: ")
    assert refusal(tmp_path, "nodes: 1\n\tport: 2\n").startswith("s.yaml:2:1: ")


def test_a_repeated_key_names_both_lines(tmp_path: Path):
    message = refusal(tmp_path, "nodes: 1\nport: 2\nnodes: 3\n")
    assert message == "s.yaml:3: nodes is given twice, first in line 1"
    assert "given twice" in refusal(tmp_path, "cluster:\n  kind: ray\n  kind: local\n")
    assert "given twice" in refusal(tmp_path, "vllm_args:\n  a: {b: 1, b: 2}\n")
    assert "given twice" in refusal(tmp_path, "cluster.kind: ray\ncluster: {kind: local}\n")
    assert "given twice" in refusal(tmp_path, "cluster: {kind: local}\ncluster.kind: ray\n")


@pytest.mark.parametrize("text", ["- nodes\n", "nodes\n", "3\n"])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path: Path, text: str):
    assert refusal(tmp_path, text).startswith("s.yaml:1: settings must be lines")


def test_a_second_document_is_refused(tmp_path: Path):
    assert refusal(tmp_path, "nodes: 1\n---\nnodes: 2\n").startswith("s.yaml:2:")


def test_a_key_that_is_no_word_is_refused(tmp_path: Path):
    assert "a key must be a plain word" in refusal(tmp_path, "? [a]\n: 1\n")


def test_a_value_that_contains_itself_is_refused(tmp_path: Path):
    assert "contains itself" in refusal(tmp_path, "vllm_args: &a {b: *a}\n")


def test_unknown_tags_and_impossible_dates_are_refused(tmp_path: Path):
    assert refusal(tmp_path, "nodes: !!python/object:os.system 1\n").startswith("s.yaml:1: ")
    assert refusal(tmp_path, "nodes: 2026-99-99\n").startswith("s.yaml:1: ")


def test_files_that_cannot_be_read_are_told_in_one_line(tmp_path: Path):
    assert "not UTF-8" in refusal(tmp_path, b"nodes: \xff\n")
    for path in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ConfigError, match=f"cannot read {path}: "):
            yaml_file.read(path, free=frozenset())


@given(st.text(max_size=60))
def test_no_text_gets_past_config_error(tmp_path_factory: pytest.TempPathFactory, text: str):
    file = tmp_path_factory.mktemp("yaml") / "s.yaml"
    file.write_text(text, encoding="utf-8", errors="ignore")
    with contextlib.suppress(ConfigError):
        yaml_file.read(file, free=frozenset({"vllm_args"}))
