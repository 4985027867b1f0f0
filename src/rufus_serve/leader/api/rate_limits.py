"""Requests and tokens per minute of each API key, by the `limits` library."""

import math
import time
from typing import NamedTuple

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from rufus_serve.config.keys import ApiKey
from rufus_serve.leader.api.http_error import HttpError

Headers = list[tuple[bytes, bytes]]


class _Window(NamedTuple):
    kind: str
    limit: int
    remaining: int
    reset_s: float

    def headers(self) -> Headers:
        """As OpenAI's clients read them."""
        values = (("limit", self.limit), ("remaining", self.remaining))
        found = [(f"x-ratelimit-{name}-{self.kind}", str(value)) for name, value in values]
        found.append((f"x-ratelimit-reset-{self.kind}", f"{self.reset_s:.1f}s"))
        return [(name.encode(), value.encode()) for name, value in found]


class RateLimits:
    """Counts what each key has used of its minute; event loop only."""

    def __init__(self) -> None:
        self._limiter = FixedWindowRateLimiter(MemoryStorage())

    def admit(self, key: ApiKey) -> Headers:
        """Count a request; the headers that tell what is left.

        Raises:
            HttpError: 429, with the time to wait, when the minute's requests or tokens are used.
        """
        for kind, limit in _limits(key):
            window = self._window(key, kind, limit)
            if window.remaining < 1:
                raise HttpError(
                    429,
                    f"key {key.id} has used its {limit} {kind} of this minute; "
                    f"try again in {window.reset_s:.0f} s",
                    retry_after_s=max(1, math.ceil(window.reset_s)),
                    headers=[*self.headers(key)],
                    reason=f"key_{kind}",
                )
        if key.requests_per_minute:
            self._hit(key, "requests", key.requests_per_minute, 1)
        return self.headers(key)

    def spend(self, key: ApiKey, num_tokens: int) -> None:
        """Count tokens; a request may overdraw the minute, which delays the next one."""
        if key.tokens_per_minute and num_tokens:
            self._hit(key, "tokens", key.tokens_per_minute, num_tokens)

    def headers(self, key: ApiKey) -> Headers:
        """What is left to `key`; empty if it has no limits."""
        windows = [self._window(key, kind, limit) for kind, limit in _limits(key)]
        return [header for window in windows for header in window.headers()]

    def _hit(self, key: ApiKey, kind: str, limit: int, cost: int) -> None:
        self._limiter.hit(RateLimitItemPerMinute(limit), key.id, kind, cost=cost)

    def _window(self, key: ApiKey, kind: str, limit: int) -> _Window:
        reset_at, remaining = self._limiter.get_window_stats(
            RateLimitItemPerMinute(limit), key.id, kind
        )
        return _Window(kind, limit, remaining, max(0.0, reset_at - time.time()))


def _limits(key: ApiKey) -> list[tuple[str, int]]:
    limits = (("requests", key.requests_per_minute), ("tokens", key.tokens_per_minute))
    return [(kind, limit) for kind, limit in limits if limit]
