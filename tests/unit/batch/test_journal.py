import os
from pathlib import Path

import pytest

from rufus_serve.batch.journal import Journal
from rufus_serve.batch.lines import BatchLine, Fault, Reply, answered, failed
from rufus_serve.batch.runner import closing
from rufus_serve.errors import BatchError


def line(custom_id: str) -> bytes:
    asked = BatchLine(number=1, custom_id=custom_id, url="/v1/completions", body={})
    return answered(asked, Reply(status=200, request_id="", body={}))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "out", tmp_path / "errors"


def test_what_was_written_is_known_to_the_next_run(files: tuple[Path, Path]) -> None:
    with closing(Journal(*files)) as journal:
        journal.answer("a", line("a"))
        journal.fail(7, failed(Fault(line=7, code="c", message="m")))
    with closing(Journal(*files)) as journal:
        assert journal.done == {"a", 7}
        assert (journal.completed, journal.failed) == (1, 1)


@pytest.mark.parametrize("kept", [1, 10, -1])
def test_a_torn_line_is_cut_off_and_asked_again(files: tuple[Path, Path], kept: int) -> None:
    files[0].write_bytes(line("a") + line("b")[:kept])
    with closing(Journal(*files)) as journal:
        assert journal.done == {"a"}
        journal.answer("b", line("b"))
    with closing(Journal(*files)) as journal:
        assert journal.done == {"a", "b"}


def test_failures_can_be_forgotten(files: tuple[Path, Path]) -> None:
    with closing(Journal(*files)) as journal:
        journal.fail("a", line("a"))
    with closing(Journal(*files, again=True)) as journal:
        assert journal.done == set()
        journal.answer("a", line("a"))
    assert files[1].read_bytes() == b""


def test_two_runs_do_not_write_the_same_file(files: tuple[Path, Path]) -> None:
    with closing(Journal(*files)), pytest.raises(BatchError, match="another process"):
        Journal(*files)


def test_a_file_of_something_else_is_left_alone(files: tuple[Path, Path]) -> None:
    files[0].write_text("my thesis\n")
    with pytest.raises(BatchError, match="choose another file"):
        Journal(*files)
    assert files[0].read_text() == "my thesis\n"


def test_a_full_disk_leaves_whole_lines(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Journal(*files)) as journal:
        journal.answer("a", line("a"))
        whole, write = files[0].read_bytes(), os.pwrite

        def half(fd: int, data: bytes, offset: int) -> int:
            if len(data) < len(line("b")):
                raise OSError(28, "No space left on device")
            return write(fd, data[:20], offset)

        monkeypatch.setattr(os, "pwrite", half)
        with pytest.raises(BatchError, match="No space left on device; what is in it is kept"):
            journal.answer("b", line("b"))
        assert "b" not in journal.done
    assert files[0].read_bytes() == whole


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="cannot be written"):
        Journal(tmp_path / "no" / "out", tmp_path / "errors")
