import json

import pytest

from rufus_serve.errors import ModelError
from rufus_serve.model.config_json import read_config


def written(folder, **raw):
    (folder / "config.json").write_text(json.dumps(raw))
    return read_config(folder)


@pytest.mark.parametrize("value", [0, -1, 1.5, "4", True, []])
def test_counts_must_be_positive_integers(tmp_path, value):
    with pytest.raises(ModelError, match=r"config\.json: heads must be a positive integer, got"):
        written(tmp_path, heads=value).count("heads")


def test_an_absent_count_has_its_default_or_is_refused(tmp_path):
    config = written(tmp_path, heads=None)
    assert config.count("heads", default=3) == 3
    with pytest.raises(ModelError, match="heads must be a positive integer, got None"):
        config.count("heads")


def test_the_file_may_be_named_instead_of_its_folder(tmp_path):
    written(tmp_path, heads=4)
    config = read_config(tmp_path / "config.json")
    assert (config.folder, config.count("heads")) == (tmp_path, 4)


def test_a_folder_that_is_none_is_told(tmp_path):
    with pytest.raises(ModelError, match="absent: no such folder"):
        read_config(tmp_path / "absent")


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not valid JSON"), ("[]", "must hold a JSON object"), (None, "cannot be read")],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text, said):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=rf"config\.json: {said}"):
        read_config(tmp_path)
