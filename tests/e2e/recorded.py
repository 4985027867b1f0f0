"""Servers of the tiny model, and what they answer undisturbed to every kind of request."""

from collections.abc import Sequence

from tests.e2e.losses import wait_ready
from tests.e2e.server import Server
from tests.e2e.streams import Answer, Ask, Streams, completion, every_kind

LENGTH = 60
FLAGS = (
    "--cluster.kind=local", "--dtype=float32", "--max-model-len=1024", "--max-num-seqs=16",
    "--buckets.prefill=64,256", "--recovery.max-restarts=1000",
)  # fmt: skip
# The tiny model is nearly indifferent: at 1.0 the last bit of a logit would choose the token.
TEMPERATURE = 0.1
_SAMPLED = {"temperature": TEMPERATURE, "max_tokens": LENGTH}
ASKS = [
    *every_kind(LENGTH, temperature=TEMPERATURE),
    completion("The sea", min_tokens=40, logit_bias={"2": 8.0}, seed=21, **_SAMPLED),
    completion("The sea", bad_words=["water", "blue"], seed=22, **_SAMPLED),
    completion("The sea", top_p=0.8, repetition_penalty=1.3, seed=23, **_SAMPLED),
    completion("The sea", top_k=20, frequency_penalty=0.7, seed=24, **_SAMPLED),
    completion("Numbers:", structured_outputs={"regex": "([0-9]{3} ){6}end"}, max_tokens=LENGTH),
    completion("Heads or tails:", n=3, seed=25, logprobs=2, **_SAMPLED),
]


class Recorded:
    """A server, and what it answers undisturbed."""

    asks: Sequence[Ask] = ASKS

    def __init__(self, server: Server) -> None:
        self.server = server
        self.expected = self.start().finish()

    def start(self) -> Streams:
        return Streams(self.server.port, self.server.name, self.asks)

    def start_and_wait(self) -> Streams:
        wait_ready(self.server)
        streams = self.start()
        streams.wait_until_each_began()
        return streams

    def assert_undisturbed(self, streams: Streams) -> list[Answer]:
        answers = streams.finish()
        for answer, expected in zip(answers, self.expected, strict=True):
            answer.assert_same(expected)
        return answers
