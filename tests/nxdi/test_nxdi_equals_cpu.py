"""The same step requests, answered equally by the CPU runtime and by NxD Inference."""

import numpy as np
import pytest
from nxdi_group import Sequences
from test_nxdi_runtime import LAYOUTS

from rufus_serve.config.schema import ServeConfig
from rufus_serve.runtime.base import GroupSpec

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def cpu(model):
    """Makes a CPU runtime that holds blocks of another runtime's shape."""
    from rufus_serve.runtime.cpu import CpuRuntime

    made = []

    def make(info, settings):
        config = ServeConfig(
            model=str(model), dtype="float32", max_num_seqs=4, block_size=info.block_size,
            max_model_len=info.max_model_len, buckets=settings["buckets"], cpu={"threads": 1},
        )  # fmt: skip
        runtime = CpuRuntime(config, 0)
        made.append(runtime)
        assert runtime.load(lambda *_: None).num_blocks >= info.num_blocks
        runtime.join(
            GroupSpec(
                epoch=1, node_rank=0, num_nodes=1, rendezvous="rufus-test-alone",
                same_host=True, num_blocks=info.num_blocks,
            )
        )  # fmt: skip
        return runtime

    yield make
    for runtime in made:
        runtime.close()


@pytest.mark.parametrize(("layout", "ranks"), [("contiguous", 3), ("block", 3), ("block", 1)])
def test_both_runtimes_answer_a_schedule_alike(layout, ranks, model, cpu, start_group, prompt):
    settings = LAYOUTS[layout]
    group = start_group(
        settings | {"model": str(model), "runtime": "neuron", "nodes": ranks, "max_num_seqs": 4}
    )
    other = cpu(group.info, settings)

    def both(step):
        logits = group.step(step)
        np.testing.assert_allclose(logits, getattr(other, step.phase.value)(step), atol=2e-4)
        return logits

    sequences = Sequences(both, group.info)
    for name, length in (("a", 1), ("b", 17), ("c", 64), ("d", 100)):
        sequences.add(name, prompt(length))
    for names in ("dba", "ab", "cabd", "c", "dcba", "bd"):
        for name, logits in sequences.run(*names).items():
            sequences.tokens[name].append(int(np.argmax(logits)))
    group.close()
