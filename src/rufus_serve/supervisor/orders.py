"""Orders to a running supervisor from a command on the same host."""

import queue
import time
from pathlib import Path

from rufus_serve.channel.keys import GroupKeys
from rufus_serve.channel.peer import PeerClient
from rufus_serve.errors import ClusterError
from rufus_serve.protocol.messages import (
    Ack,
    AnyMessage,
    Drain,
    Order,
    RestartFollower,
    Status,
    StatusRequest,
    TraceSteps,
)
from rufus_serve.supervisor.group_file import GroupFile, running, state_dir

_ANSWER_S = 10.0
_POLL_S = 0.1


def drain(*, port: int | None, folder: str, grace_s: float, keep_followers: bool) -> None:
    """Let the server on `port` finish its requests and end; returns once it has.

    `port` may be None where one server runs; `folder` is its `cluster.state_dir`.

    Raises:
        ClusterError: there is no such server here, or it does not end.
    """
    group = _running(port, folder)
    _ask(group, Drain(grace_s=grace_s, keep_followers=keep_followers))
    deadline = time.monotonic() + grace_s + 60.0
    while group.alive:
        if time.monotonic() > deadline:
            raise ClusterError(f"process {group.supervisor_pid} still runs after its grace")
        time.sleep(_POLL_S)


def restart_follower(*, port: int | None, folder: str, node_rank: int, deadline_s: float) -> Status:
    """Replace one follower of the server on `port`; the status once it serves again.

    Raises:
        ClusterError: no such server or follower, or it does not come back in time.
    """
    group = _running(port, folder)
    answer = _ask(group, RestartFollower(node_rank=node_rank))
    if isinstance(answer, Ack) and answer.error:
        raise ClusterError(answer.error)
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        status = _ask(group, StatusRequest())
        if isinstance(status, Status) and status.ready:
            return status
        time.sleep(_POLL_S)
    raise ClusterError(f"follower {node_rank} is not back after {deadline_s:g} s")


def status(*, port: int | None, folder: str) -> Status:
    """What the server on `port` says of its group.

    Raises:
        ClusterError: there is no such server here.
    """
    answer = _ask(_running(port, folder), StatusRequest())
    assert isinstance(answer, Status)
    return answer


def trace(*, port: int | None, folder: str, num_steps: int, path: Path, deadline_s: float) -> None:
    """Have the server on `port` write a trace of its next steps; returns once it is written.

    Raises:
        ClusterError: there is no such server here, or it takes no steps.
    """
    path.unlink(missing_ok=True)
    _ask(_running(port, folder), TraceSteps(num_steps=num_steps, path=str(path)))
    deadline = time.monotonic() + deadline_s
    while not path.exists():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"{path} was not written within {deadline_s:g} s: fewer than {num_steps} steps "
                "were taken, or the server may not write there; see its log"
            )
        time.sleep(_POLL_S)


def _running(port: int | None, folder: str) -> GroupFile:
    """The group on `port`, or the only one there is.

    Raises:
        ClusterError: there is none, or it is not clear which one is meant.
    """
    groups = running(folder)
    if port is None and len(groups) == 1:
        return next(iter(groups.values()))
    if port in groups:
        return groups[port]
    where = f"this host (looked in {state_dir(folder)})"
    ports = ", ".join(map(str, groups))
    if port is None and groups:
        raise ClusterError(f"servers run on ports {ports} of {where}; choose one with --port")
    what = "no rufus-serve" if port is None else f"no rufus-serve on port {port}"
    raise ClusterError(f"{what} on {where}" if not ports else f"{what}, only on {ports} of {where}")


def _ask(group: GroupFile, message: Order) -> AnyMessage:
    answers: queue.Queue[AnyMessage] = queue.Queue()
    keys = GroupKeys.from_token(group.token)
    client = PeerClient(group.link_endpoint, keys=keys, on_message=answers.put)
    try:
        client.send(message)
        return answers.get(timeout=_ANSWER_S)
    except queue.Empty:
        raise ClusterError(
            f"the supervisor (process {group.supervisor_pid}) did not answer in {_ANSWER_S:g} s"
        ) from None
    finally:
        client.close()
