import os
from pathlib import Path

import psutil
import pytest

from rufus_serve.errors import ClusterError
from rufus_serve.protocol.messages import Ack, Status
from rufus_serve.supervisor import orders
from rufus_serve.supervisor.group_file import GroupFile, path_of_port

NOBODY = 2**22 + 1
"""Above any process id that Linux gives."""


def note(folder: Path, port: int, *, pid: int) -> None:
    group = GroupFile(
        supervisor_pid=pid,
        supervisor_began=psutil.Process().create_time(),
        link_endpoint="",
        control_endpoint="",
        token=str(port),
        run_dir="",
    )
    group.save(path_of_port(port, str(folder)))


def test_the_only_server_is_meant_where_no_port_is_given(tmp_path: Path):
    note(tmp_path, 8000, pid=NOBODY)
    note(tmp_path, 8123, pid=os.getpid())
    (tmp_path / "serve-8124.json").write_text("not JSON")
    assert orders._running(None, str(tmp_path)).token == "8123"
    assert orders._running(8123, str(tmp_path)).token == "8123"


@pytest.mark.parametrize(
    ("port", "running", "said"),
    [
        (None, (), "no rufus-serve on this host"),
        (8000, (), "no rufus-serve on port 8000 on this host"),
        (8000, (8001, 8002), "no rufus-serve on port 8000, only on 8001, 8002 of this host"),
        (None, (8001, 8002), "servers run on ports 8001, 8002 of this host"),
    ],
)
def test_it_is_told_which_servers_there_are(
    tmp_path: Path, port: int | None, running: tuple[int, ...], said: str
):
    for each in running:
        note(tmp_path, each, pid=os.getpid())
    with pytest.raises(ClusterError, match=said):
        orders._running(port, str(tmp_path))


def test_a_group_that_is_scaled_away_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    note(tmp_path, 8000, pid=os.getpid())
    answers = iter([Ack(), Status(state="ready", epoch=1, healthy=True, ready=True)])
    monkeypatch.setattr(orders, "_ask", lambda server, message: next(answers))
    with pytest.raises(ClusterError, match="group 1 was scaled away meanwhile"):
        orders.restart_group(port=8000, folder=str(tmp_path), group=1, deadline_s=5.0)
