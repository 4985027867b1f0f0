"""Small groups with round step times."""

from collections.abc import Sequence

from rufus_serve.plan.traffic.batching import Batching
from rufus_serve.plan.traffic.demand import Arrival
from rufus_serve.plan.traffic.engine import SimulatedEngine
from rufus_serve.plan.traffic.simulation import Fleet


class RoundTimes:
    """A prefill takes `per_token` ms a token, a decode `decode` ms."""

    def __init__(self, *, per_token: float = 1.0, decode: float = 10.0) -> None:
        self._per_token, self._decode = per_token, decode

    def prefill_ms(self, tokens: int, computed: int) -> float:
        return self._per_token * tokens

    def decode_ms(self, contexts: Sequence[int]) -> float:
        return self._decode


def batching(**fields) -> Batching:
    sizes = {
        "max_num_seqs": 4, "largest_prefill": 128, "prefill_tokens_per_step": 128,
        "num_blocks": 100, "block_size": 16, "prefix_caching": False, "steps_ahead": 0,
    }  # fmt: skip
    return Batching(**(sizes | fields))


def engine(times=None, **fields) -> SimulatedEngine:
    return SimulatedEngine(batching(**fields), (times or RoundTimes(),))


def fleet(num_groups=1, *, times=None, losses=(), **fields) -> Fleet:
    return Fleet(
        num_groups=num_groups,
        batching=batching(**fields),
        times=times or RoundTimes(),
        losses=tuple(losses),
    )


def asked(at_s=0.0, *, prompt=64, output=4, first_id=0) -> Arrival:
    return Arrival(at_s=at_s, tokens=range(first_id, first_id + prompt), num_output=output)
