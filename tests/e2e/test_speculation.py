"""With speculation every answer is the one without, also when a follower is killed meanwhile."""

from collections.abc import Iterator

import pytest

from tests.e2e.groups import FLAGS
from tests.e2e.losses import serving, strike
from tests.e2e.server import Server
from tests.e2e.streams import Streams, completion, every_kind

pytestmark = pytest.mark.timeout(300)
DRAFTED, ACCEPTED = (f"vllm:spec_decode_num_{kind}_tokens_total" for kind in ("draft", "accepted"))
COUNTING = "one two three four five six seven eight nine ten eleven twelve "
ASKS = [
    *every_kind(24),
    completion(COUNTING * 3, max_tokens=40, ignore_eos=True),
    completion(COUNTING * 3, max_tokens=40, stop=["seven eight"]),
    completion(COUNTING * 3, max_tokens=24, logprobs=2, min_tokens=20, logit_bias={"260": -1.0}),
    completion(COUNTING * 3, max_tokens=24, temperature=0.7, min_p=0.05, seed=3, n=2),
]


@pytest.fixture(scope="module")
def drafting() -> Iterator[Server]:
    flags = ("--speculation.method=ngram", "--cluster.kind=local")
    with serving("--nodes=2", *FLAGS, *flags) as server:
        yield server


def test_answers_are_those_without_speculation_through_a_loss_too(
    drafting: Server, demo_server: Server
) -> None:
    expected = Streams(demo_server.port, demo_server.name, ASKS).finish()
    streams = Streams(drafting.port, drafting.name, ASKS)
    streams.wait_until_each_began()
    blow = strike(drafting, 1)
    for answer, other in zip(streams.finish(), expected, strict=True):
        answer.assert_same(other)
    blow.wait_recovered()
    assert 0 < drafting.metric(ACCEPTED) <= drafting.metric(DRAFTED)
    by_place = drafting.metric("vllm:spec_decode_num_accepted_tokens_per_pos_total")
    assert by_place == drafting.metric(ACCEPTED)
