from typing import Any

import pytest

from rufus_serve.config.schema import LimitConfig
from rufus_serve.leader.api.http_error import HttpError
from rufus_serve.leader.api.request_checks import check_body, weight_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LIMITS = LimitConfig(max_stop_strings=4)


def image(kind: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": kind}]}]


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        (CHAT, {"messages": []}, "messages"),
        ("/v1/messages", {"messages": []}, "messages"),
        (CHAT, {"max_tokens": 0}, "max_tokens"),
        (CHAT, {"max_tokens": -1}, "max_tokens"),
        (CHAT, {"max_tokens": "many"}, "max_tokens"),
        (CHAT, {"max_tokens": True}, "max_tokens"),
        (CHAT, {"max_completion_tokens": 0}, "max_completion_tokens"),
        ("/v1/responses", {"max_output_tokens": 0}, "max_output_tokens"),
        (CHAT, {"temperature": 1e9}, "temperature"),
        (CHAT, {"temperature": -0.1}, "temperature"),
        (CHAT, {"temperature": float("nan")}, "temperature"),
        (CHAT, {"temperature": float("inf")}, "temperature"),
        (CHAT, {"temperature": "hot"}, "temperature"),
        (CHAT, {"top_p": 1.1}, "top_p"),
        (CHAT, {"n": 0}, "n"),
        (CHAT, {"n": 129}, "n"),
        (CHAT, {"top_k": -2}, "top_k"),
        ("/v1/responses", {"input": "x", "previous_response_id": "r"}, "previous_response_id"),
        ("/v1/responses", {"input": "x", "background": True}, "background"),
        ("/v1/responses", {"input": "x", "conversation": "c"}, "conversation"),
        ("/v1/responses", {"tools": [{"type": "mcp", "server_url": "http://a"}]}, "tools"),
        ("/v1/messages", {"mcp_servers": [{"url": "http://a"}]}, "mcp_servers"),
        (CHAT, {"functions": [{"name": "f"}]}, "functions"),
        (CHAT, {"guided_json": {}}, "guided_json"),
        (CHAT, {"web_search_options": {}}, "web_search_options"),
        ("/v1/chat/completions/batch", {"messages": [image("image_url")]}, "messages"),
        (CHAT, {"messages": [{"role": "tool", "content": [{"image_url": "x"}]}]}, "messages"),
        (CHAT, {"stop": ["a"] * 5}, "stop"),
        (CHAT, {"stop_token_ids": [1] * 5}, "stop_token_ids"),
        (CHAT, {"bad_words": ["a"] * 5}, "bad_words"),
        (CHAT, {"response_format": {"type": "yaml"}}, "response_format"),
        (CHAT, {"response_format": "json"}, "response_format"),
        (CHAT, {"structured_outputs": "json"}, "structured_outputs"),
        ("/v1/responses", {"prompt_logprobs": 0}, "prompt_logprobs"),
        (COMPLETIONS, {"prompt_embeds": "AAAA"}, "prompt_embeds"),
        ("/v1/messages", {"echo": True}, "echo"),
        (COMPLETIONS, {"prompt": "x", "max_tokens": 0}, "max_tokens"),
        (CHAT, {"echo": True, "max_tokens": 0}, "max_tokens"),
        (CHAT, {"messages": image("image_url")}, "messages"),
        (CHAT, {"messages": image("input_audio")}, "messages"),
        ("/v1/responses", {"input": image("input_image")}, "input"),
        ("/v1/responses", {"input": [{"type": "input_file"}]}, "input"),
        (COMPLETIONS, {"prompt": [True, False]}, "prompt"),
        (COMPLETIONS, {"prompt": [[1, 2], [3, True]]}, "prompt"),
        (COMPLETIONS, {"prompt": "x", "logprobs": True}, "logprobs"),
        (CHAT, {"seed": True}, "seed"),
        (CHAT, {"logit_bias": {"5": False}}, "logit_bias"),
        (CHAT, {"stop_token_ids": [True]}, "stop_token_ids"),
        ("/detokenize", {"tokens": [1, True]}, "tokens"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(path: str, body: Any, named: str) -> None:
    with pytest.raises(HttpError) as refused:
        check_body(path, body, LIMITS)
    assert refused.value.status == 400
    assert refused.value.param == named
    assert refused.value.message


@pytest.mark.parametrize("body", [[1], None, "text", 3])
def test_a_body_that_is_no_object_is_refused(body: object) -> None:
    with pytest.raises(HttpError, match="must be a JSON object"):
        check_body(CHAT, body, LIMITS)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "temperature": 2, "n": 3}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}),
        (CHAT, {"stop": ["a"] * 4, "temperature": 0, "max_tokens": None, "top_p": 1}),
        (CHAT, {"response_format": {"type": "json_object"}, "logprobs": True}),
        (COMPLETIONS, {"prompt": "x", "echo": True}),
        (COMPLETIONS, {"prompt": "x", "logprobs": 2, "echo": False}),
        (COMPLETIONS, {"prompt": [1, 2], "logprobs": 1, "echo": True, "max_tokens": 0}),
        (CHAT, {"prompt_logprobs": 0, "echo": True}),
        ("/v1/responses", {"input": "x", "store": True}),
        (CHAT, {"n": 128}),
    ],
)
def test_what_can_be_served_passes(path: str, body: Any) -> None:
    check_body(path, body, LIMITS)


@pytest.mark.parametrize(
    ("path", "body", "weight"),
    [
        (COMPLETIONS, {"prompt": "x"}, 1),
        (COMPLETIONS, {"prompt": [1, 2, 3]}, 1),
        (COMPLETIONS, {"prompt": ["a", "b"], "n": 3}, 6),
        (COMPLETIONS, {"prompt": [[1, 2], [3]]}, 2),
        (CHAT, {"messages": [{}, {}], "n": 4}, 4),
        (COMPLETIONS, {"prompt": []}, 1),
        ("/v1/chat/completions/batch", {"messages": [[{}], [{}]], "n": 2}, 4),
        ("/generative_scoring", {"items": ["a", "b", "c"]}, 3),
    ],
)
def test_a_request_weighs_as_many_sequences_as_it_asks_for(
    path: str, body: Any, weight: int
) -> None:
    assert weight_of(path, body) == weight
