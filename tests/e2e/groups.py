"""Servers that are to lose followers, with what they answer undisturbed."""

from tests.e2e.server import Server
from tests.e2e.streams import Answer, Streams, completion, every_kind

FLAGS = (
    "--dtype=float32", "--max-model-len=1024", "--recovery.max-restarts=1000",
    "--timeouts.step-floor-s=2", "--timeouts.heartbeat-lost-s=3", "--timeouts.heartbeat-s=0.25",
    "--buckets.prefill=64,256",
)  # fmt: skip
ASKS = every_kind(24)
LONG_PROMPT = completion(
    list(range(1000, 1900)), max_tokens=8, ignore_eos=True, echo=True, logprobs=1
)


class Group:
    """A server and what it answers undisturbed."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.expected = self.start().finish()
        self.long_expected = self.start_long().finish()

    def start(self) -> Streams:
        return Streams(self.server.port, self.server.name, ASKS)

    def start_long(self) -> Streams:
        return Streams(self.server.port, self.server.name, [LONG_PROMPT])

    def assert_undisturbed(self, answers: list[Answer]) -> None:
        for answer, expected in zip(answers, self.expected, strict=True):
            answer.assert_same(expected)
