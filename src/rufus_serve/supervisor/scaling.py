"""`Scaling`: groups that come and go while the server serves."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from rufus_serve.config.schema import MOST_GROUPS
from rufus_serve.errors import ClusterError
from rufus_serve.protocol.messages import GroupNews
from rufus_serve.supervisor import group_events as ev
from rufus_serve.supervisor.group import Group, Shared
from rufus_serve.supervisor.group_state import GroupState

_POLL_S = 0.1


class Scaling:
    """Owns which groups there are; event loop only.

    They are numbered from 0 on, so it is the last ones that go. One that is to go leaves rotation
    at once, and goes when it has no request left; until then it may be wanted again.
    """

    def __init__(
        self,
        groups: list[Group],
        states: list[GroupState],
        shared: Shared,
        *,
        new_state: Callable[[int, GroupState | None], GroupState],
        obstacle: Callable[[], str],
    ) -> None:
        """Adds to `groups` and `states`, and takes from them; `new_state` makes one for a number.

        `obstacle`: why the server as a whole cannot be scaled now; empty if it can.
        """
        self._groups, self._states, self._shared = groups, states, shared
        self._new_state, self._obstacle = new_state, obstacle
        self._removed: dict[int, GroupState] = {}
        """Of groups that went, by number: the next of a number tells its processes apart."""
        self._wanted = len(groups)
        self._removes = False

    async def scale(self, wanted: int) -> str:
        """Begin to have `wanted` groups; why not, or else nothing."""
        if refusal := self._refusal(wanted):
            return refusal
        if wanted > len(self._groups):
            try:
                await self._make_room(wanted)
            except ClusterError as error:
                return f"{wanted} groups cannot be had: {error}"
        before, self._wanted = self._wanted, wanted
        for group in self._groups[before:wanted]:
            await group.return_to_rotation()
        for group in self._groups[wanted:]:
            await group.leave_rotation()
        while len(self._groups) < wanted:
            await self._add()
        if len(self._groups) > wanted and not self._removes:
            self._removes = True
            self._shared.spawn(self._remove_surplus())
        return ""

    async def tell_gone(self) -> None:
        """Have an API process that came just now forget groups that went meanwhile."""
        for number in self._removed:
            await self._shared.link.to_api(GroupNews(group=number, state="gone"))

    def _refusal(self, wanted: int) -> str:
        config, spread = self._shared.config, self._shared.plan.spread
        if not 1 <= wanted <= MOST_GROUPS:
            return f"{wanted} groups are refused: a server has 1 to {MOST_GROUPS}"
        if obstacle := self._obstacle():
            return obstacle
        grows = wanted > len(self._groups)
        if grows and not spread and (config.cluster.token_file or config.cluster.ray_address):
            return (
                "this server was started for one follower, where no other host can reach it; "
                f"start it again with `groups: {wanted}`"
            )
        if grows and not spread and config.runtime == "neuron":
            return (
                "this host's NeuronCores were shared out among its followers when they started; "
                f"start the server again with `groups: {wanted}`"
            )
        shrinks = wanted < len(self._groups)
        if shrinks and not any(group.takes_requests for group in self._groups[:wanted]):
            return f"none of the {wanted} that would be left takes requests now"
        return ""

    async def _make_room(self, num_groups: int) -> None:
        """Raises ClusterError if hosts are missing."""
        shared = self._shared
        followers = num_groups * shared.config.nodes + shared.config.recovery.standby_nodes
        shared.nodes = await shared.in_cluster(shared.cluster.make_room, followers)

    async def _add(self) -> None:
        number = len(self._groups)
        state = self._new_state(number, self._removed.pop(number, None))
        group = Group(number, state, self._shared)
        self._states.append(state)
        self._groups.append(group)
        self._shared.report.step(f"group {number} is added")
        told = [group] if self._shared.has_several else self._groups
        self._shared.has_several = True
        for each in told:
            await each.tell_api()
        async with self._shared.acting:
            await group.start(())

    async def _remove_surplus(self) -> None:
        """Take the last groups away, as soon as they have no request left."""
        while len(self._groups) > self._wanted:
            last = self._groups[-1]
            if last.is_out:
                await self._remove(last)
                continue
            if last.takes_requests:  # it was restarted meanwhile
                await last.leave_rotation()
            await asyncio.sleep(_POLL_S)
        self._removes = False

    async def _remove(self, group: Group) -> None:
        shared = self._shared
        async with shared.acting:
            self._groups.pop()
            self._removed[group.number] = self._states.pop()
            group.state.handle(ev.Stopping(), time.monotonic())
        await shared.link.to_api(GroupNews(group=group.number, state="gone"))
        shared.link.forget_engine(group.number)
        group.end()
        shared.note()
        with contextlib.suppress(ClusterError):  # followers to come get fewer threads then
            await self._make_room(len(self._groups))
        shared.report.step(f"group {group.number} is gone")
