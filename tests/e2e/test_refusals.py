"""What cannot be served is refused with a 4xx that says what and why; the server goes on."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.models import prompt
from tests.e2e.server import Server

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.fixture(scope="module", autouse=True)
def _still_knows_paris_afterwards(demo_server: Server) -> Iterator[None]:
    yield
    assert "Paris" in demo_server.ask()
    assert demo_server.metric("vllm:num_requests_running") == 0


def refused(server: Server, path: str, body: Any) -> tuple[int, str]:
    """Status and message of an error in OpenAI's form."""
    status, answer = server.post(path, body)
    assert isinstance(answer, dict), (status, answer)
    error = answer.get("error")
    assert error, (status, answer)
    assert error["code"] == status
    assert error["type"]
    return status, error["message"]


def chat_body(server: Server, **fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    return {"model": server.name, "messages": messages, "max_tokens": 4} | fields


def completion_body(server: Server, **fields: Any) -> dict[str, Any]:
    return {"model": server.name, "prompt": "The capital", "max_tokens": 4} | fields


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt_logprobs": 21}, "prompt logprobs of 21"),
        ({"prompt_logprobs": -1}, "from 0 to 1000"),
        ({"logits_processors": ["x"]}, "logits_processors"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
        ({"mm_processor_kwargs": {"x": 1}}, "mm_processor_kwargs"),
        ({"kv_transfer_params": {"x": 1}}, "kv_transfer_params"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "image_url"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "input_audio",
        ),
        ({"model": "some-adapter"}, "some-adapter"),
        ({"response_format": {"type": "xml"}}, "response_format"),
    ],
)
def test_an_unsupported_chat_feature_is_named(
    demo_server: Server, fields: dict[str, Any], named: str
) -> None:
    status, message = refused(demo_server, CHAT, chat_body(demo_server, **fields))
    assert status in (400, 404)
    assert named in message


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"echo": True, "logprobs": 21}, "logprobs of 21"),
        ({"prompt_logprobs": 1, "stream": True}, "stream"),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds"),
        ({"best_of": 4}, "best_of"),
        ({"suffix": "."}, "suffix"),
        ({"logprobs": -1}, "logprobs"),
    ],
)
def test_an_unsupported_completion_feature_is_named(
    demo_server: Server, fields: dict[str, Any], named: str
) -> None:
    status, message = refused(demo_server, COMPLETIONS, completion_body(demo_server, **fields))
    assert status == 400
    assert named in message


@pytest.mark.parametrize(
    ("path", "feature"),
    [
        ("/v1/embeddings", "embeddings"),
        ("/pooling", "pooling"),
        ("/score", "scoring"),
        ("/v1/rerank", "reranking"),
        ("/v1/audio/transcriptions", "audio"),
        ("/v1/images/generations", "images"),
        ("/v1/load_lora_adapter", "LoRA"),
    ],
)
def test_an_absent_route_names_the_feature(demo_server: Server, path: str, feature: str) -> None:
    status, message = refused(demo_server, path, {"model": demo_server.name, "input": "x"})
    assert status == 404
    assert feature in message


def test_an_image_in_a_response_is_refused(demo_server: Server) -> None:
    content = [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]
    body = {"model": demo_server.name, "input": [{"role": "user", "content": content}]}
    status, message = refused(demo_server, RESPONSES, body)
    assert (status, "input_image" in message) == (400, True)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"messages": []}, "messages must not be empty"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [1]}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "content"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"max_tokens": -5}, "max_tokens must be at least 1"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": 100_000}, "max_tokens=100000"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"temperature": 1e9}, "temperature must be from 0 to 2"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": "x"}, "top_k"),
        ({"top_k": -5}, "top_k"),
        ({"min_p": -0.1}, "min_p"),
        ({"presence_penalty": 9}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"n": 0}, "n must be at least 1"),
        ({"n": 100_000}, "n must be at most 128"),
        ({"seed": "x"}, "seed"),
        ({"seed": 2**70}, "seed"),
        ({"stream": "maybe"}, "stream"),
        ({"stream_options": []}, "stream_options"),
        ({"logprobs": True, "top_logprobs": 1000}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"min_tokens": 5}, "min_tokens"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"stop": ["x"] * 5000}, "stop has 5000 entries"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"stop_token_ids": [10**9]}, "stop_token_ids"),
        ({"bad_words": [""]}, "bad_words"),
        ({"bad_words": ["x"] * 5000}, "bad_words has 5000 entries"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"structured_outputs": {"regex": "(((("}}, "egex"),
        ({"structured_outputs": {"regex": "(?=x)y"}}, "ookahead"),
        ({"structured_outputs": {"regex": "a{1,9}{1,9}"}}, "repetition"),
        ({"structured_outputs": {"grammar": 'root ::= "yes'}}, "rammar"),
        ({"structured_outputs": {"choice": []}}, "empty"),
        ({"structured_outputs": {"choice": ["a"], "regex": "b"}}, "one kind"),
        ({"structured_outputs": {"nothing": 1}}, "structured outputs"),
        ({"structured_outputs": "x"}, "structured_outputs must be an object"),
        ({"structured_outputs": {"json": {"type": "nonsense"}}}, "nonsense"),
        ({"tools": "x"}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"model": 5}, "model"),
        ({"model": "unknown"}, "unknown"),
        ({"user": 5}, "user"),
    ],
)
def test_a_bad_chat_field_is_named(demo_server: Server, fields: dict[str, Any], said: str) -> None:
    status, message = refused(demo_server, CHAT, chat_body(demo_server, **fields))
    assert 400 <= status < 500
    assert said in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "prompt"),
        ([], "prompt"),
        (5, "prompt"),
        ([99_999_999], "99999999"),
        ([-1], "prompt"),
        ([1.5], "prompt"),
        ([[1, 2], []], "prompt"),
        ("word " * 3000, "1024 tokens"),
        ("word" * 900_000, "1024 tokens"),
    ],
)
def test_a_bad_prompt_is_refused(demo_server: Server, text: Any, said: str) -> None:
    status, message = refused(demo_server, COMPLETIONS, completion_body(demo_server, prompt=text))
    assert status == 400
    assert said in message


def test_a_prompt_that_fills_the_context_leaves_no_room_for_output(demo_server: Server) -> None:
    full = completion_body(demo_server, prompt=prompt(1024))
    assert refused(demo_server, COMPLETIONS, full)[0] == 400
    one_left = completion_body(demo_server, prompt=prompt(1023), max_tokens=1)
    assert demo_server.post(COMPLETIONS, one_left)[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "not valid JSON"),
        (b'{"model":', 400, "not valid JSON"),
        (b"\xff\xfe", 400, "not valid JSON"),
        (b"[1, 2]", 400, "JSON object"),
        (b"null", 400, "JSON object"),
        (b'{"messages": [], "temperature": NaN}', 400, "NaN"),
        (b'{"messages": [], "temperature": -Infinity}', 400, "Infinity"),
        (b'{"temperature": 1e999}', 400, "temperature"),
        (b"[" * 100_000, 400, "not valid JSON"),
        (b'{"x": ' * 50_000 + b"1" + b"}" * 50_000, 400, ""),
        (b'{"max_tokens": ' + b"9" * 10_000 + b"}", 400, ""),
        (b"x" * 10_000_000, 413, "larger than 4 MB"),
        (b"{}", 400, "messages"),
    ],
    ids=[
        "empty", "cut off", "not text", "list", "null", "nan", "infinity", "overflow",
        "open brackets", "deep", "long number", "10 MB", "no fields",
    ],
)  # fmt: skip
def test_a_bad_body_is_refused(demo_server: Server, body: bytes, status: int, said: str) -> None:
    found, message = refused(demo_server, CHAT, body)
    assert found == status
    assert said in message


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        ("/tokenize", {}, "prompt"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        (RESPONSES, {}, "input"),
        (RESPONSES, {"input": []}, "empty conversation"),
        (RESPONSES, {"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_a_bad_field_of_another_route_is_named(
    demo_server: Server, path: str, fields: dict[str, Any], said: str
) -> None:
    status, message = refused(demo_server, path, {"model": demo_server.name} | fields)
    assert status == 400
    assert said in message


def test_an_unknown_route_is_404_and_a_wrong_method_405(demo_server: Server) -> None:
    assert demo_server.post("/v1/nothing", {})[0] == 404
    assert demo_server.get(CHAT)[0] == 405


def test_an_error_reaches_the_official_client_as_its_own_type(demo_server: Server) -> None:
    import openai

    with demo_server.client() as client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=demo_server.name, messages=[])
    assert "messages must not be empty" in caught.value.message
    assert json.loads(caught.value.response.text)["error"]["param"] == "messages"
