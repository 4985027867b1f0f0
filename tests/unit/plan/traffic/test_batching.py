import pytest
from tests.unit.plan.test_plan import asked
from tests.unit.plan.traffic.made import batching

from rufus_serve.plan.plan import make_plan
from rufus_serve.plan.traffic.batching import Batching


def test_a_plans_groups_prefill_one_whole_prompt_between_decodes():
    rules = Batching.of(make_plan(asked(max_num_seqs=4, max_model_len=2048)))
    assert (rules.max_num_seqs, rules.num_blocks, rules.block_size) == (4, 4, 2048)
    assert (rules.max_prefills_per_step, rules.segmented_prefill) == (1, False)
    assert (rules.prefill_tokens_per_step, rules.prefix_caching) == (2048, False)


@pytest.mark.parametrize(("tokens", "blocks"), [(1, 1), (16, 1), (17, 2)])
def test_sequences_take_whole_blocks(tokens, blocks):
    assert batching(block_size=16).blocks(tokens) == blocks


def test_the_cache_holds_its_blocks():
    assert batching(num_blocks=10, block_size=16).kv_tokens == 160
