import json

import pytest

from rufus_serve.bench.workload import Shape, conversations, from_file, made_up
from rufus_serve.errors import ConfigError


def shape(**fields):
    sizes = {"num_requests": 6, "input_tokens": 20, "output_tokens": 5}
    return Shape(**(sizes | fields))


def test_prompts_have_the_exact_length_and_differ():
    asked = made_up(shape())
    assert {len(each.prompt) for each in asked} == {20}
    assert len({each.prompt for each in asked}) == 6
    assert all(each.exact and not each.is_chat for each in asked)


def test_beginnings_are_shared_by_kind():
    asked = made_up(shape(shared_tokens=15, kinds=2))
    beginnings = [each.prompt[:15] for each in asked]
    assert beginnings[0] == beginnings[2] != beginnings[1] == beginnings[3]
    assert len({each.prompt for each in asked}) == 6


def test_the_same_seed_asks_the_same():
    assert made_up(shape(seed=3)) == made_up(shape(seed=3)) != made_up(shape(seed=4))


@pytest.mark.parametrize("sizes", [{"shared_tokens": 20}, {"vocab_size": 300}])
def test_sizes_that_contradict_are_refused(sizes):
    with pytest.raises(ConfigError):
        made_up(shape(**sizes))


def test_conversations_have_turns_of_one_session():
    asked = conversations(shape(turns=4))
    assert [each.session for each in asked] == [0, 0, 0, 0, 1, 1]
    assert all(each.is_chat for each in asked)
    assert len(asked[0].messages[0]["content"].split()) == 20


def test_a_file_gives_prompts_conversations_and_moments(tmp_path):
    lines = [
        {"prompt": "a river", "at": 1},
        {"prompt": [3, 4], "max_tokens": 9, "at": 2.5},
        {"messages": [{"role": "user", "content": "hi"}], "at": 3},
    ]
    path = tmp_path / "asked.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    asked = from_file(path, output_tokens=7)
    assert [each.prompt for each in asked] == ["a river", (3, 4), None]
    assert [each.max_tokens for each in asked] == [7, 9, 7]
    assert [each.at_s for each in asked] == [1, 2.5, 3]


@pytest.mark.parametrize(
    "line", ["{", "[]", "3", '{"prompt": {}}', "{}", '{"prompt": "a", "messages": []}',
             '{"prompt": "a", "at": "soon"}', '{"prompt": "a", "max_tokens": "many"}'],
)  # fmt: skip
def test_a_line_that_is_no_request_is_named(tmp_path, line):
    path = tmp_path / "asked.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line)
    with pytest.raises(ConfigError, match=r"asked.jsonl:2: "):
        from_file(path, output_tokens=7)


def test_a_file_that_is_absent_or_empty_is_told(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        from_file(tmp_path / "none.jsonl", output_tokens=1)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="holds no request"):
        from_file(tmp_path / "empty.jsonl", output_tokens=1)
