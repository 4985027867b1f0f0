import msgspec
from recorded_messages import INFO


def test_a_group_can_do_no_more_than_any_of_its_followers():
    able = msgspec.structs.replace(INFO, prompt_logprobs=True, num_blocks=50)
    assert able.together_with([]) == able
    assert able.together_with([able, INFO]) == msgspec.structs.replace(INFO, num_blocks=50)
