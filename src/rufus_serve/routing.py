"""`Router`: what it would cost to send a request to a group. Nothing of sockets, clocks or vLLM.

A group's load is the tokens that it has yet to compute: prompts not prefilled, and outputs as
long as outputs are on average. A beginning that its cache holds need not be computed, and is
taken off. So the lowest cost is the longest cached beginning, unless that group is busier than
the least busy one by more than the beginning saves.

Which beginnings an engine has cached is remembered here, by a hash for each chunk of tokens that
stands for all tokens up to its end. Two that collide cost a detour and nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

CHUNK_TOKENS = 64
_FIRST_MEAN = 128.0
"""Output tokens that a request is taken to bring before any has ended."""
_KEEP = 0.98
_MAX_SESSIONS = 4096


@dataclass(frozen=True)
class Wanted:
    """A request as far as its way is concerned."""

    name: str
    tokens: Sequence[int]
    """All that a group would prefill: the prompt, and what another group delivered."""
    most_left: int
    """Tokens that it may bring yet."""
    root: object = None
    """What its cached beginnings depend on beside the tokens; hashable."""
    session: str = ""
    """Its client's word for requests that belong together."""

    def keys(self) -> list[int]:
        """One for each whole chunk."""
        found, key = [], hash(self.root)
        for start in range(0, len(self.tokens) - CHUNK_TOKENS + 1, CHUNK_TOKENS):
            key = hash((key, *self.tokens[start : start + CHUNK_TOKENS]))
            found.append(key)
        return found


class Beginnings:
    """Those that one engine may hold in its cache, at most as many as fit there."""

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity = capacity_tokens // CHUNK_TOKENS
        self._keys: dict[int, None] = {}
        """The one used longest ago first."""

    def __len__(self) -> int:
        return len(self._keys)

    def cached_tokens(self, keys: Sequence[int]) -> int:
        """Length of the longest beginning of `keys` that is held."""
        missing = (place for place, key in enumerate(keys) if key not in self._keys)
        return CHUNK_TOKENS * next(missing, len(keys))

    def clear(self) -> None:
        """Nothing is held any more."""
        self._keys.clear()

    def note(self, keys: Sequence[int]) -> None:
        """These were used just now; an end is forgotten before its beginning."""
        for key in reversed(keys):
            self._keys.pop(key, None)
            self._keys[key] = None
        while len(self._keys) > self._capacity:
            del self._keys[next(iter(self._keys))]


@dataclass
class _Load:
    group: int
    prompt: int
    output: float


@dataclass
class _Group:
    beginnings: Beginnings | None = None
    """None where nothing is cached."""
    load: float = 0.0


@dataclass
class Router:
    """One thread; `groups` come into being when they are first named."""

    mean_output: float = _FIRST_MEAN
    _groups: dict[int, _Group] = field(default_factory=dict)
    _loads: dict[str, _Load] = field(default_factory=dict)
    _sessions: dict[int, int] = field(default_factory=dict)
    """Groups by the hash of a session's name, which may be long."""

    def engine_came(self, group: int, *, cache_tokens: int) -> None:
        """A group has an engine with an empty cache of so many tokens; 0 if it caches nothing."""
        self._of(group).beginnings = Beginnings(cache_tokens) if cache_tokens else None

    def load(self, group: int) -> float:
        """Tokens that it has yet to compute."""
        return self._of(group).load

    def cost(self, group: int, wanted: Wanted, keys: Sequence[int]) -> float:
        """Tokens to compute until `wanted` has ended in `group`, others' included."""
        return self._of(group).load + len(wanted.tokens) - self._saved(group, wanted, keys)

    def sent(self, group: int, wanted: Wanted, keys: Sequence[int]) -> None:
        """`wanted` went to `group`."""
        to = self._of(group)
        prompt = len(wanted.tokens) - self._cached(group, keys)
        load = _Load(group, prompt, min(wanted.most_left, self.mean_output))
        self._loads[wanted.name] = load
        to.load += load.prompt + load.output
        if to.beginnings is not None:
            to.beginnings.note(keys)
        if wanted.session:
            session = hash(wanted.session)
            self._sessions.pop(session, None)
            self._sessions[session] = group
            if len(self._sessions) > _MAX_SESSIONS:
                del self._sessions[next(iter(self._sessions))]

    def began(self, name: str) -> None:
        """The request brought tokens: its prompt is prefilled."""
        load = self._loads.get(name)
        if load is not None and load.prompt:
            self._of(load.group).load -= load.prompt
            load.prompt = 0

    def left(self, name: str) -> None:
        """The request is not in its group any more."""
        load = self._loads.pop(name, None)
        if load is not None:
            self._of(load.group).load -= load.prompt + load.output

    def ended(self, group: int, wanted: Wanted, *, num_output: int) -> None:
        """All of `wanted.tokens` are in the group's cache now; the next turn begins with them."""
        self.mean_output = _KEEP * self.mean_output + (1 - _KEEP) * num_output
        beginnings = self._of(group).beginnings
        if beginnings is not None:
            beginnings.note(wanted.keys())

    def forget(self, group: int) -> None:
        """The group's cache is void."""
        beginnings = self._of(group).beginnings
        if beginnings is not None:
            beginnings.clear()

    def _of(self, group: int) -> _Group:
        return self._groups.setdefault(group, _Group())

    def _cached(self, group: int, keys: Sequence[int]) -> int:
        beginnings = self._of(group).beginnings
        return 0 if beginnings is None else beginnings.cached_tokens(keys)

    def _saved(self, group: int, wanted: Wanted, keys: Sequence[int]) -> int:
        if wanted.session and self._sessions.get(hash(wanted.session)) == group:
            return len(wanted.tokens)
        return self._cached(group, keys)
