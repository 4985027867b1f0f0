from pathlib import Path

import pytest

from rufus_serve.cli.serve import refuse_missing_files
from rufus_serve.errors import ModelError


def test_a_checkpoint_with_a_tokenizer_is_let_through(tmp_path: Path):
    (tmp_path / "config.json").touch()
    (tmp_path / "tokenizer.json").touch()
    refuse_missing_files(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [((), "no config.json"), (("tokenizer.json",), "no config.json"), (("config.json",), "no tok")],
)
def test_what_is_missing_is_named(tmp_path: Path, files: tuple[str, ...], said: str):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(ModelError, match=said):
        refuse_missing_files(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path):
    with pytest.raises(ModelError, match="absent: no such folder"):
        refuse_missing_files(tmp_path / "absent")
