import os
from pathlib import Path

import msgspec
import psutil

from rufus_serve.supervisor.group_file import GroupFile, load

NOTE = GroupFile(
    supervisor_pid=os.getpid(),
    supervisor_began=psutil.Process().create_time(),
    link_endpoint="",
    control_endpoint="",
    token="",
    run_dir="",
)


def test_a_note_counts_while_its_very_process_runs() -> None:
    assert NOTE.alive
    other = msgspec.structs.replace(NOTE, supervisor_began=NOTE.supervisor_began - 3600)
    assert not other.alive
    assert not msgspec.structs.replace(NOTE, supervisor_began=0.0).alive


def test_a_note_of_a_version_that_told_no_start_is_read_and_counts_as_stale(tmp_path: Path) -> None:
    old = msgspec.to_builtins(NOTE)
    del old["supervisor_began"]
    path = tmp_path / "serve-1.json"
    path.write_bytes(msgspec.json.encode(old))
    found = load(path)
    assert found is not None
    assert not found.alive
