from pathlib import Path

from rufus_serve.leader.failure_note import FailureNote


def test_without_a_note_there_is_no_error(tmp_path: Path) -> None:
    assert FailureNote(tmp_path / "note").error() is None


def test_the_error_carries_message_and_exit_code(tmp_path: Path) -> None:
    FailureNote(tmp_path / "note").write(3, "restarted too often")
    error = FailureNote(tmp_path / "note").error()
    assert error is not None
    assert (error.exit_code, str(error)) == (3, "restarted too often")


def test_the_first_error_is_kept(tmp_path: Path) -> None:
    note = FailureNote(tmp_path / "note")
    note.write(7, "the cause")
    note.write(10, "a consequence")
    assert str(note.error()) == "the cause"
