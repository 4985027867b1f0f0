import logging

import pytest

from rufus_serve.supervisor import group_events as ev
from rufus_serve.supervisor.report import Report


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger="rufus_serve.supervisor")
    logging.getLogger("rufus_serve").propagate = True
    return lambda: [record.getMessage() for record in caplog.records]


def member(phase: ev.MemberPhase, rank: int = 1, host: str = "node-a") -> ev.Member:
    return ev.Member(
        follower_id=f"{rank}.1", node_rank=rank, phase=phase, since=0.0, heard=0.0, host=host
    )


def test_each_change_of_phase_is_told_once_with_node_and_time(lines):
    report = Report()
    for phase in (ev.MemberPhase.LOADING, ev.MemberPhase.LOADING, ev.MemberPhase.LOADED):
        report.member(member(phase))
    first, second = lines()
    assert first == "follower 1 on node-a: loading"
    assert second == "follower 1 on node-a: loaded after 0.0 s loading"


def test_a_stand_by_is_called_one(lines):
    Report().member(member(ev.MemberPhase.IDLE, rank=ev.STANDBY, host=""))
    assert lines() == ["stand-by: stand-by"]


def test_fast_progress_is_not_told(lines):
    report = Report()
    report.progress(member(ev.MemberPhase.LOADING), done=1, total=2, detail="layer 1")
    assert lines() == []


def test_steps_are_kept_for_benchmarks(lines):
    report = Report()
    report.step("cluster")
    assert [what for what, _ in report.phases] == ["cluster"]
    assert lines()[0].startswith("cluster (0.0 s since start)")
