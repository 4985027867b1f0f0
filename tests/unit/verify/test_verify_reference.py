import pytest

from rufus_serve.artifacts.identity import ModelIdentity
from rufus_serve.errors import ModelError
from rufus_serve.verify.reference import (
    PROMPTS,
    Choice,
    Prompt,
    Reference,
    read_reference,
    write_reference,
)

CHOICE = Choice(token=7, logprob=-0.5, top={7: -0.5, 9: -1.25})
REFERENCE = Reference(
    model=ModelIdentity(config_sha256="a" * 64, weights=()),
    made_by="transformers 5, float32",
    prompts=(Prompt(text="The", tokens=(1, 2), choices=(CHOICE,)),),
)


def test_what_is_written_is_read_again(tmp_path):
    write_reference(tmp_path / "reference.json", REFERENCE)
    assert read_reference(tmp_path / "reference.json") == REFERENCE


def test_a_token_that_is_not_listed_is_at_most_as_likely_as_the_last_one():
    assert CHOICE.least == -1.25


@pytest.mark.parametrize("text", ["", "[]", '{"prompts": []}'])
def test_what_is_no_reference_is_refused_with_the_way_to_make_one(tmp_path, text):
    path = tmp_path / "reference.json"
    path.write_text(text)
    with pytest.raises(ModelError, match=r"reference\.json: no reference .* --make FILE"):
        read_reference(path)


def test_another_format_is_refused(tmp_path):
    path = tmp_path / "reference.json"
    write_reference(path, REFERENCE)
    path.write_text(path.read_text().replace('"format":1', '"format":2'))
    with pytest.raises(ModelError, match="format 2, this rufus-serve reads 1"):
        read_reference(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"nowhere\.json: cannot be read: No such file"):
        read_reference(tmp_path / "nowhere.json")


def test_prompts_differ_and_are_of_many_lengths():
    lengths = [len(text.split()) for text in PROMPTS]
    assert len(set(PROMPTS)) == len(PROMPTS)
    assert min(lengths) == 1
    assert max(lengths) > 100
