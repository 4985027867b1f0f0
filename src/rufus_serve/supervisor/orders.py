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
    DrainGroup,
    Order,
    RestartFollower,
    RestartGroup,
    Scale,
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


def restart_follower(
    *, port: int | None, folder: str, group: int, node_rank: int, deadline_s: float
) -> None:
    """Replace one follower of the server on `port`; returns once its group serves again.

    Raises:
        ClusterError: no such server or follower, or it does not come back in time.
    """
    server = _running(port, folder)
    _obey(server, RestartFollower(node_rank=node_rank, group=group))
    _await_group(server, group, "ready", deadline_s=deadline_s)


def restart_group(*, port: int | None, folder: str, group: int, deadline_s: float) -> None:
    """Replace all followers of a group; returns once it serves again.

    Raises:
        ClusterError: no such server or group, or it does not come back in time.
    """
    server = _running(port, folder)
    _obey(server, RestartGroup(group=group))
    _await_group(server, group, "ready", deadline_s=deadline_s)


def drain_group(*, port: int | None, folder: str, group: int, grace_s: float) -> None:
    """Take a group out of rotation; returns once it has no request left.

    Raises:
        ClusterError: no such server or group, or it still has requests after `grace_s`.
    """
    server = _running(port, folder)
    _obey(server, DrainGroup(group=group))
    _await_group(server, group, "drained", deadline_s=grace_s)


def scale(*, port: int | None, folder: str, groups: int, deadline_s: float) -> None:
    """Have the server serve with so many groups; returns once those that came are ready.

    Raises:
        ClusterError: no such server, it refuses, a group fails, or it takes too long.
    """
    server = _running(port, folder)
    before = len(_status(server).groups)
    _obey(server, Scale(groups=groups))
    deadline = time.monotonic() + deadline_s
    while not _has_scaled(now := _status(server), before, groups):
        if time.monotonic() > deadline:
            states = ", ".join(f"{each.group} {each.state}" for each in now.groups)
            raise ClusterError(f"not scaled to {groups} after {deadline_s:g} s: groups {states}")
        time.sleep(_POLL_S)


def _has_scaled(now: Status, before: int, wanted: int) -> bool:
    """Raises ClusterError if a group that came has failed."""
    for group in now.groups[before:]:
        if group.state == "failed":
            raise ClusterError(f"group {group.group} failed: {group.detail}; the others serve on")
    return len(now.groups) == wanted and all(group.ready for group in now.groups[before:])


def _obey(server: GroupFile, order: Order) -> None:
    answer = _ask(server, order)
    if isinstance(answer, Ack) and answer.error:
        raise ClusterError(answer.error)


def _await_group(server: GroupFile, group: int, state: str, *, deadline_s: float) -> None:
    deadline, last = time.monotonic() + deadline_s, ""
    while time.monotonic() < deadline:
        answer = _status(server)
        if group >= len(answer.groups):
            raise ClusterError(f"group {group} was scaled away meanwhile")
        last = answer.groups[group].state
        if last == state and (answer.ready or state != "ready"):
            return
        time.sleep(_POLL_S)
    raise ClusterError(f"group {group} is {last}, not {state}, after {deadline_s:g} s")


def status(*, port: int | None, folder: str) -> Status:
    """What the server on `port` says of its group.

    Raises:
        ClusterError: there is no such server here.
    """
    return _status(_running(port, folder))


def _status(server: GroupFile) -> Status:
    answer = _ask(server, StatusRequest())
    assert isinstance(answer, Status)
    return answer


def trace(
    *, port: int | None, folder: str, group: int, num_steps: int, path: Path, deadline_s: float
) -> None:
    """Have a group of the server on `port` write a trace of its next steps; returns once it is.

    Raises:
        ClusterError: there is no such server here, or it takes no steps.
    """
    path.unlink(missing_ok=True)
    _ask(_running(port, folder), TraceSteps(num_steps=num_steps, path=str(path), group=group))
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
