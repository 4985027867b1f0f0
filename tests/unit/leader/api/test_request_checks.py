from typing import Any

import pytest

from rufus_serve.config.schema import LimitConfig
from rufus_serve.leader.api.http_error import HttpError
from rufus_serve.leader.api.request_checks import check_body, check_path, weight_of

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
        (CHAT, {"stop": ["a"] * 5}, "stop"),
        (CHAT, {"stop_token_ids": [1] * 5}, "stop_token_ids"),
        (CHAT, {"bad_words": ["a"] * 5}, "bad_words"),
        (CHAT, {"response_format": {"type": "yaml"}}, "response_format"),
        (CHAT, {"response_format": "json"}, "response_format"),
        (CHAT, {"structured_outputs": "json"}, "structured_outputs"),
        (CHAT, {"prompt_logprobs": 2}, "prompt_logprobs"),
        (COMPLETIONS, {"prompt_embeds": "AAAA"}, "prompt_embeds"),
        (COMPLETIONS, {"use_beam_search": True}, "use_beam_search"),
        (COMPLETIONS, {"echo": True, "logprobs": 1}, "echo"),
        (CHAT, {"echo": True}, "echo"),
        (CHAT, {"messages": image("image_url")}, "messages"),
        (CHAT, {"messages": image("input_audio")}, "messages"),
        ("/v1/responses", {"input": image("input_image")}, "input"),
        ("/v1/responses", {"input": [{"type": "input_file"}]}, "input"),
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
        ("/v1/responses", {"input": "x"}),
    ],
)
def test_what_can_be_served_passes(path: str, body: Any) -> None:
    check_body(path, body, LIMITS)


@pytest.mark.parametrize(
    ("path", "feature"),
    [
        ("/v1/embeddings", "embeddings"),
        ("/v1/embeddings/", "embeddings"),
        ("/score", "scoring"),
        ("/v2/rerank", "reranking"),
        ("/v1/audio/transcriptions", "audio"),
        ("/v1/load_lora_adapter", "LoRA"),
    ],
)
def test_routes_of_absent_features_are_named(path: str, feature: str) -> None:
    with pytest.raises(HttpError) as refused:
        check_path(path)
    assert refused.value.status == 404
    assert feature in refused.value.message


def test_known_routes_pass() -> None:
    for path in (CHAT, COMPLETIONS, "/v1/models", "/metrics", "/"):
        check_path(path)


@pytest.mark.parametrize(
    ("body", "weight"),
    [
        ({"prompt": "x"}, 1),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": ["a", "b"], "n": 3}, 6),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"messages": [], "n": 4}, 4),
        ({"prompt": []}, 1),
    ],
)
def test_a_request_weighs_as_many_sequences_as_it_asks_for(body: Any, weight: int) -> None:
    assert weight_of(body) == weight
