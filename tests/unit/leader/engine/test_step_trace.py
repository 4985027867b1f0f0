import json
import time

import pytest

from rufus_serve.leader.engine.step_trace import StepTrace
from rufus_serve.protocol.messages import StepReply

CLOCK_AHEAD_S = 1000.0


def reply(step_id: int, rank: int, began: float, compute_s: float = 0.02) -> StepReply:
    """Of a follower whose clock is ahead of the leader's."""
    return StepReply(
        step_id=step_id, epoch=1, node_rank=rank, compute_s=compute_s, wait_s=0.005,
        began=began + CLOCK_AHEAD_S,
    )  # fmt: skip


def read(path) -> list[dict]:
    deadline = time.monotonic() + 5.0
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return json.loads(path.read_text())["traceEvents"]


def test_the_asked_number_of_steps_is_written_on_the_leaders_clock(tmp_path):
    trace, path = StepTrace(), tmp_path / "trace.json"
    trace.start(2, str(path))
    with trace.span("build"):
        pass
    for step_id, way_s in ((1, 0.003), (2, 0.001)):
        sent = 50.0 + step_id
        trace.step([reply(step_id, 0, sent + way_s)], sent=sent, received=sent + 0.02 + 2 * way_s)
    with trace.span("after the last step"):
        pass
    events = read(path)
    tracks = {event["args"]["name"]: event["tid"] for event in events if event["ph"] == "M"}
    assert set(tracks) == {"steps", "follower 0"}
    spans = {
        (event["name"], event["args"].get("step_id")): event
        for event in events
        if event["ph"] == "X"
    }
    assert ("after the last step", None) not in spans
    assert spans["build", None]["tid"] == tracks["steps"]
    for step_id, way_s in ((1, 0.003), (2, 0.001)):
        receive, execute, collective, back = (
            spans[name, step_id] for name in ("receive", "execute", "collective", "reply")
        )
        assert receive["dur"] == pytest.approx(1e6 * way_s, abs=1)
        assert execute["dur"] == pytest.approx(20_000, abs=1)
        assert collective["dur"] == pytest.approx(5_000, abs=1)
        assert back["dur"] == pytest.approx(1e6 * way_s, abs=1)
        assert execute["ts"] == pytest.approx(receive["ts"] + receive["dur"], abs=1)
    assert spans["receive", 2]["ts"] - spans["receive", 1]["ts"] == pytest.approx(1e6, abs=1)


def test_nothing_is_recorded_unless_asked_for(tmp_path):
    trace = StepTrace()
    with trace.span("build"):
        pass
    trace.step([reply(1, 0, 5.0)], sent=5.0, received=5.1)
    trace.start(1, str(tmp_path / "trace.json"))
    trace.step([reply(2, 0, 7.0)], sent=7.0, received=7.1)
    names = [event["name"] for event in read(tmp_path / "trace.json") if event["ph"] == "X"]
    assert names == ["receive", "execute", "collective", "reply"]


def test_a_file_that_cannot_be_written_harms_nothing(tmp_path, caplog):
    trace = StepTrace()
    trace.start(1, str(tmp_path / "no folder" / "trace.json"))
    trace.step([reply(1, 0, 5.0)], sent=5.0, received=5.1)
    deadline = time.monotonic() + 5.0
    while not caplog.records and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "cannot be written" in caplog.text
