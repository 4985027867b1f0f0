import subprocess
import sys

import pytest

from rufus_serve.artifacts.draft import draft_folder, open_draft
from rufus_serve.artifacts.identity import Identity, ModelIdentity
from rufus_serve.artifacts.manifest import MANIFEST
from rufus_serve.errors import ArtifactError

IDENTITY = Identity(
    model=ModelIdentity(config_sha256="c", weights=()), runtime="cpu", num_nodes=2, layout=1
)


def nothing(*_):
    pass


def opened(root):
    return open_draft(root, IDENTITY, threads=2, progress=nothing)


def make(draft, unit, data=b"data"):
    (draft.folder / unit).write_bytes(data)
    draft.finish(unit, {unit: []})


def test_nothing_bears_the_final_name_before_all_is_published(tmp_path):
    with opened(tmp_path) as draft:
        make(draft, "a")
        assert not (tmp_path / IDENTITY.key).exists()
        folder = draft.publish()
    assert folder == tmp_path / IDENTITY.key
    assert sorted(path.name for path in folder.iterdir()) == ["a", MANIFEST]


def test_finished_units_are_found_again_and_others_are_not(tmp_path):
    with opened(tmp_path) as draft:
        make(draft, "a")
        (draft.folder / "b").write_bytes(b"half")
    with opened(tmp_path) as draft:
        assert draft.has("a")
        assert not draft.has("b")
        make(draft, "b", b"whole")
        assert (draft.publish() / "b").read_bytes() == b"whole"


def test_what_no_unit_recorded_is_not_published(tmp_path):
    with opened(tmp_path) as draft:
        make(draft, "a")
        (draft.folder / "stray.tmp").write_bytes(b"half")
        assert not (draft.publish() / "stray.tmp").exists()


def test_a_damaged_unit_of_a_draft_is_made_again(tmp_path):
    with opened(tmp_path) as draft:
        make(draft, "a")
        make(draft, "b")
    (draft_folder(tmp_path, IDENTITY.key) / "a").write_bytes(b"dath")
    with opened(tmp_path) as draft:
        assert (draft.has("a"), draft.has("b")) == (False, True)


def test_complete_artifacts_need_no_draft(tmp_path):
    with opened(tmp_path) as draft:
        make(draft, "a")
        draft.publish()
    with opened(tmp_path) as draft:
        assert draft is None


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damaged_artifacts_become_a_draft_that_keeps_the_good_units(tmp_path, damage):
    with opened(tmp_path) as draft:
        make(draft, "a")
        make(draft, "b")
        bad = draft.publish() / "b"
    if damage == "remove":
        bad.unlink()
    else:
        bad.write_bytes({"flip": b"datb", "cut": b"dat"}[damage])
    with opened(tmp_path) as draft:
        assert (draft.has("a"), draft.has("b")) == (True, False)
        make(draft, "b")
        draft.publish()
    with opened(tmp_path) as draft:
        assert draft is None


def test_a_damaged_journal_starts_over(tmp_path):
    with opened(tmp_path) as draft:
        make(draft, "a")
        (draft.folder / "unfinished.json").write_bytes(b"{")
    with opened(tmp_path) as draft:
        assert not draft.has("a")


def test_a_second_process_is_refused_while_one_works(tmp_path):
    code = (
        "import fcntl, sys; lock = open(sys.argv[1], 'a'); fcntl.flock(lock, fcntl.LOCK_EX);"
        "print('locked', flush=True); sys.stdin.read()"
    )
    lock = tmp_path / f".{IDENTITY.key}.lock"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(ArtifactError, match="being made by another process"):
            opened(tmp_path).__enter__()
        other.stdin.close()
        other.wait()
    with opened(tmp_path) as draft:
        assert draft is not None


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="file: cannot be written"):
        opened(tmp_path / "file").__enter__()
