import json
from pathlib import Path
from typing import Any

import pytest

from rufus_serve.leader.api.generation_defaults import greedy_defaults, replaced_defaults


def given(folder: Path, **defaults: Any) -> dict[str, Any]:
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    return replaced_defaults(folder)


@pytest.mark.parametrize(
    ("name", "value", "neutral"),
    [
        ("temperature", 5.0, 1.0),
        ("temperature", -1, 1.0),
        ("top_p", 1.5, 1.0),
        ("top_p", 0, 1.0),
        ("top_k", -7, 0),
        ("min_p", 2, 0.0),
        ("repetition_penalty", 0.0, 1.0),
        ("repetition_penalty", "high", 1.0),
        ("frequency_penalty", 9, 0.0),
    ],
)
def test_a_default_that_requests_are_refused_for_becomes_neutral(
    tmp_path: Path, name: str, value: object, neutral: float
) -> None:
    assert given(tmp_path, **{name: value}) == {name: neutral}


def test_good_defaults_stay(tmp_path: Path) -> None:
    assert given(tmp_path, temperature=0.6, top_p=0.95, top_k=20, do_sample=True) == {}


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_file_that_says_nothing_changes_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    assert replaced_defaults(tmp_path) == {}


def test_a_model_without_the_file_has_no_defaults(tmp_path: Path) -> None:
    assert replaced_defaults(tmp_path) == {}


def test_where_followers_choose_tokens_requests_are_greedy_unless_they_say_otherwise() -> None:
    defaults = greedy_defaults()
    assert (defaults["temperature"], defaults["repetition_penalty"]) == (0.0, 1.0)
