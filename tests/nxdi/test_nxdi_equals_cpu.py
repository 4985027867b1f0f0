"""The same schedules, answered alike by the CPU runtime, by it with a device's rules, and by NxD.

`tests/contract/test_runtime_strict.py` runs them without NxD Inference.
"""

import numpy as np
import pytest
from test_nxdi_runtime import LAYOUTS
from tests.contract.step_sequences import SCHEDULES, Sequences, agreeing

from rufus_serve.config.schema import ServeConfig
from rufus_serve.runtime.base import GroupSpec
from rufus_serve.runtime.cpu import CpuRuntime
from rufus_serve.runtime.cpu.strict import StrictCpuRuntime

pytestmark = pytest.mark.timeout(240)


class Alone:
    """A CPU runtime in this process, as a group of one."""

    def __init__(self, runtime_class, settings, *, num_blocks):
        config = ServeConfig(
            runtime="cpu", dtype="float32", max_num_seqs=4, cpu={"threads": 1}, **settings
        )
        self.runtime = runtime_class(config, 0)
        assert self.runtime.load(lambda *_: None).num_blocks >= num_blocks
        self.runtime.join(
            GroupSpec(
                epoch=1, node_rank=0, num_nodes=1, rendezvous="rufus-test-alone",
                same_host=True, num_blocks=num_blocks,
            )
        )  # fmt: skip

    def step(self, step):
        logits = getattr(self.runtime, step.phase.value)(step)
        return None if logits is None else logits.rows(np.arange(step.num_rows))


@pytest.fixture(scope="module", params=[("contiguous", 3), ("block", 3), ("block", 1)],
                ids=lambda pair: f"{pair[0]}-tp{pair[1]}")  # fmt: skip
def runtimes(request, model, start_group):
    """Layout, and NxD Inference, the CPU runtime and the strict one with blocks of one shape."""
    layout, ranks = request.param
    settings = LAYOUTS[layout] | {"model": str(model)}
    nxdi = start_group(settings | {"runtime": "neuron", "nodes": ranks, "max_num_seqs": 4})
    num_blocks = nxdi.info.num_blocks
    cpu = Alone(CpuRuntime, settings | {"block_size": nxdi.info.block_size}, num_blocks=num_blocks)
    strict = Alone(StrictCpuRuntime, settings, num_blocks=num_blocks)
    yield layout, nxdi, cpu, strict
    cpu.runtime.close()
    strict.runtime.close()


def test_all_runtimes_answer_every_schedule_alike(runtimes):
    layout, *groups = runtimes
    random = np.random.default_rng(11)
    for schedule in SCHEDULES[layout]:
        sequences = Sequences(agreeing(*groups, atol=2e-4), groups[0].info)
        schedule(sequences, lambda length: random.integers(3, 504, length).tolist())
