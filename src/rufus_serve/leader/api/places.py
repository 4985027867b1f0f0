"""Places in the batch and its waiting room, shared fairly among API keys."""

import time
from collections import Counter

from rufus_serve.config.keys import ApiKey
from rufus_serve.leader.api.http_error import HttpError

_CLAIM_S = 5.0
"""How long a refused key counts as one that waits."""


class Places:
    """Places in the batch and its waiting room, shared fairly among API keys.

    A key may take all while no other wants any. While others hold places or were refused one
    just now, each may hold no more than an equal share. Event loop only.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._held: Counter[str] = Counter()
        self._refused: dict[str, float] = {}

    @property
    def num_open(self) -> int:
        """Places taken."""
        return self._held.total()

    def held(self, key_id: str) -> int:
        """Places that one key holds."""
        return self._held[key_id]

    def check(self, key: ApiKey, weight: int) -> None:
        """Raise HttpError 400 or 429 if `key` can not have `weight` more places (now)."""
        if weight > self.capacity:
            most = self.capacity
            raise HttpError(400, f"{weight} sequences in one request; at most {most} are allowed")
        held = self._held[key.id]
        if key.max_sequences and held + weight > key.max_sequences:
            raise _too_many(
                f"key {key.id} has {held} sequences open, of {key.max_sequences} allowed",
                "key_sequences",
            )
        share = self._share(key.id)
        if held + weight > share and share < self.capacity:
            raise _too_many(
                f"key {key.id} has {held} sequences open, its share while others wait", "key_share"
            )
        if self.num_open + weight > self.capacity:
            self._refused[key.id] = time.monotonic()
            raise _too_many(
                f"{self.num_open} sequences are running or waiting, of {self.capacity} allowed",
                "full",
            )

    def take(self, key_id: str, weight: int) -> None:
        """Count places; a negative `weight` gives them back."""
        self._held[key_id] += weight
        self._refused.pop(key_id, None)
        if not self._held[key_id]:
            del self._held[key_id]

    def _share(self, key_id: str) -> int:
        now = time.monotonic()
        self._refused = {k: at for k, at in self._refused.items() if now - at < _CLAIM_S}
        claimants = {*self._held, *self._refused, key_id}
        return -(-self.capacity // len(claimants))


def _too_many(message: str, reason: str) -> HttpError:
    return HttpError(429, f"{message}; try again later", retry_after_s=1, reason=reason)
