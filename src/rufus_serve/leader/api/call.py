"""What is known of the request being served: for logs, limits and scheduling."""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from rufus_serve.config.keys import ANONYMOUS, ApiKey


@dataclass
class Times:
    """When the engine did what for a request, in monotonic seconds; 0: not yet."""

    queued: float = 0.0
    scheduled: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0


@dataclass
class Call:
    """One HTTP request; filled in by the layers it passes. Event loop only."""

    request_id: str
    method: str = ""
    path: str = ""
    key: ApiKey = ANONYMOUS
    model: str = ""
    status: int = 0
    refusal: str = ""
    """Why it was refused, where the status does not say enough."""
    sequences: int = 0
    """Places it takes in the batch."""
    rank: int = 0
    """Sequences its key had open when it came; more of them are scheduled later."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    began: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None
    times: Times = field(default_factory=Times)
    """Of several prompts, from the first to be queued to the last token."""
    engine_ids: list[str] = field(default_factory=list)
    """What the engine calls its requests; each name is followed by something random there."""

    @property
    def num_tokens(self) -> int:
        """Tokens of prompts and answers so far."""
        return self.prompt_tokens + self.output_tokens

    def saw_times(self, *, queued: float, scheduled: float, first: float, last: float) -> None:
        """Take in when the engine did what for one prompt."""
        times = self.times
        times.queued = min(times.queued or queued, queued)
        times.scheduled = min(times.scheduled or scheduled, scheduled)
        times.first_token = min(times.first_token or first, first)
        times.last_token = max(times.last_token, last)

    def saw_token(self) -> None:
        """Note when the first token came."""
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.began


CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)
"""The call that this task works for."""
