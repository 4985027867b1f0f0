"""Drives a `GroupState` the way followers and supervisor would, without either."""

from rufus_serve.protocol.messages import RuntimeInfo, StepEndpoint
from rufus_serve.supervisor import group_events as ev
from rufus_serve.supervisor.group_state import GroupState


def runtime_info(*, num_blocks: int = 64, can_rejoin: bool = True) -> RuntimeInfo:
    return RuntimeInfo(
        model_type="llama",
        num_layers=2,
        num_kv_heads=2,
        head_size=8,
        vocab_size=64,
        dtype="float32",
        block_size=16,
        num_blocks=num_blocks,
        max_model_len=128,
        prefill_buckets=(64,),
        decode_batch_buckets=(4,),
        context_buckets=(128,),
        can_rejoin=can_rejoin,
    )


class GroupHistory:
    """A group, its clock, and every action it asked for."""

    def __init__(self, **settings: float) -> None:
        self.now = 100.0
        self.settings = ev.GroupSettings(**{"nodes": 2, **settings})
        self.state = GroupState(self.settings, now=self.now)
        self.actions: list[ev.Action] = []
        self.can_rejoin = True
        self._note(self.state.start((), self.now))

    def happen(self, event: ev.Event) -> list[ev.Action]:
        return self._note(self.state.handle(event, self.now))

    def wait(self, seconds: float) -> list[ev.Action]:
        """Let time pass in ticks of 0.1 s, every live member sending heartbeats."""
        seen: list[ev.Action] = []
        for _ in range(max(1, round(seconds * 10))):
            self.now += 0.1
            for name, member in list(self.state.members.items()):
                if member.phase not in (ev.MemberPhase.PLACING, ev.MemberPhase.STARTING):
                    self.happen(ev.Heard(follower_id=name))
            seen += self.happen(ev.Tick())
        return seen

    def pass_silently(self, seconds: float) -> list[ev.Action]:
        """Let time pass at once, nobody sending anything."""
        self.now += seconds
        return self.happen(ev.Tick())

    def id_of(self, rank: int) -> str:
        return self.state.by_rank()[rank].follower_id

    def launch(self, follower_id: str) -> list[ev.Action]:
        return self.happen(ev.Launched(follower_id=follower_id))

    def join(self, follower_id: str) -> list[ev.Action]:
        return self.happen(ev.Joined(follower_id=follower_id, host="h", address="127.0.0.1"))

    def load(self, follower_id: str, *, num_blocks: int = 64) -> list[ev.Action]:
        info = runtime_info(num_blocks=num_blocks, can_rejoin=self.can_rejoin)
        return self.happen(ev.Loaded(follower_id=follower_id, info=info))

    def group(self, follower_id: str) -> list[ev.Action]:
        return self.happen(ev.Grouping(follower_id=follower_id, epoch=self.state.epoch))

    def ready(
        self, follower_id: str, *, epoch: int | None = None, warm_up_s: float = 0.0
    ) -> list[ev.Action]:
        rank = self.state.members[follower_id].node_rank
        endpoint = StepEndpoint(node_rank=rank, host="h", endpoint=f"tcp://127.0.0.1:{1000 + rank}")
        epoch = self.state.epoch if epoch is None else epoch
        return self.happen(
            ev.Ready(follower_id=follower_id, epoch=epoch, endpoint=endpoint, warm_up_s=warm_up_s)
        )

    def lose(self, rank: int, reason: str = "killed by signal 9") -> list[ev.Action]:
        return self.happen(ev.Lost(follower_id=self.id_of(rank), reason=reason))

    def advance(self) -> None:
        """Every member does what its phase awaits, until nothing is left to do."""
        todo = True
        while todo:
            todo = False
            for name, member in list(self.state.members.items()):
                act = {
                    ev.MemberPhase.PLACING: self.launch,
                    ev.MemberPhase.STARTING: self.join,
                    ev.MemberPhase.LOADING: self.load,
                    ev.MemberPhase.GROUPING: self.group,
                    ev.MemberPhase.WARMING: self.ready,
                }.get(member.phase)
                if act is not None and name in self.state.members:
                    act(name)
                    todo = True

    def serve(self) -> "GroupHistory":
        """Bring the group up with an engine."""
        self.happen(ev.EngineJoined(leader_id="first"))
        self.advance()
        assert self.state.phase is ev.GroupPhase.READY
        return self

    def phase_of(self, rank: int) -> ev.MemberPhase:
        return self.state.by_rank()[rank].phase

    def _note(self, actions: list[ev.Action]) -> list[ev.Action]:
        self.actions += actions
        return actions


def of(kind: type[ev.Action], actions: list[ev.Action]) -> list[ev.Action]:
    return [action for action in actions if isinstance(action, kind)]
