import pytest

from rufus_serve.errors import ModelError
from rufus_serve.model.folder import check_folder, check_tokenizer, model_name


def refusal(path):
    with pytest.raises(ModelError) as raised:
        check_folder(path)
    return str(raised.value)


def test_what_is_not_there_is_no_such_folder(tmp_path):
    check_folder(tmp_path)
    assert "absent: no such folder" in refusal(tmp_path / "absent")


def test_a_gguf_file_is_refused_for_what_it_is(tmp_path):
    path = tmp_path / "model.gguf"
    path.touch()
    assert "GGUF files are not read" in refusal(path)
    assert "no such folder" not in refusal(path)


def test_a_file_of_the_checkpoint_leads_to_its_folder(tmp_path):
    path = tmp_path / "config.json"
    path.touch()
    assert refusal(path).endswith(f"config.json: a file; give `model` its folder, {tmp_path}")


def test_a_tokenizer_may_have_any_of_its_forms(tmp_path):
    with pytest.raises(ModelError, match=r"no tokenizer; one of tokenizer\.json"):
        check_tokenizer(tmp_path)
    (tmp_path / "tokenizer.model").touch()
    check_tokenizer(tmp_path)


def test_a_model_is_called_as_its_folder_even_from_within(tmp_path, monkeypatch):
    folder = tmp_path / "llama"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert [model_name(path) for path in (folder, type(folder)("."), folder / "..")] == [
        "llama", "llama", tmp_path.name
    ]  # fmt: skip


def test_a_link_is_called_as_whoever_made_it_called_it(tmp_path):
    (tmp_path / "v3-final").mkdir()
    (tmp_path / "chat").symlink_to(tmp_path / "v3-final")
    assert model_name(tmp_path / "chat") == "chat"


def test_a_snapshot_of_the_hubs_cache_is_called_as_its_repository(tmp_path):
    folder = tmp_path / "models--meta-llama--Llama-3.1-8B" / "snapshots" / "0e9e39f249a16976"
    assert model_name(folder) == "meta-llama/Llama-3.1-8B"
