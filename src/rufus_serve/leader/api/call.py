"""What is known of the request being served: for logs, limits and scheduling."""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field

from rufus_serve.config.keys import ANONYMOUS, ApiKey


@dataclass
class Call:
    """One HTTP request; filled in by the layers it passes. Event loop only."""

    request_id: str
    method: str = ""
    path: str = ""
    key: ApiKey = ANONYMOUS
    model: str = ""
    status: int = 0
    sequences: int = 0
    """Places it takes in the batch."""
    rank: int = 0
    """Sequences its key had open when it came; more of them are scheduled later."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    began: float = field(default_factory=time.monotonic)
    first_token_s: float | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of prompts and answers so far."""
        return self.prompt_tokens + self.output_tokens

    def saw_token(self) -> None:
        """Note when the first token came."""
        if self.first_token_s is None:
            self.first_token_s = time.monotonic() - self.began


CURRENT: ContextVar[Call | None] = ContextVar("call", default=None)
"""The call that this task works for."""
