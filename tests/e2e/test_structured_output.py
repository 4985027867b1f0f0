"""Answers in a given form: JSON, choices, expressions, grammars, tool calls."""

import json
import re
from typing import Any

import pytest

from tests.e2e.server import Server

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "size": {"enum": ["small", "large"]},
        "year": {"type": "integer", "minimum": 1000, "maximum": 1999},
    },
    "required": ["city", "size", "year"],
    "additionalProperties": False,
}
FUNCTION = {"name": "describe_city", "parameters": CITY, "strict": True}
TOOLS = [{"type": "function", "function": FUNCTION}]


def chat(server: Server, **fields: Any) -> dict[str, Any]:
    body = {
        "model": server.name,
        "messages": [{"role": "user", "content": "Describe Paris."}],
        "temperature": 0,
        "max_tokens": 160,
    }
    status, answer = server.post("/v1/chat/completions", body | fields)
    assert status == 200, answer
    return answer["choices"][0]


def test_a_json_schema_is_kept(demo_server: Server) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY}}
    choice = chat(demo_server, response_format=form)
    found = json.loads(choice["message"]["content"])
    assert set(found) == {"city", "size", "year"}
    assert found["size"] in ("small", "large")
    assert 1000 <= found["year"] <= 1999
    assert choice["finish_reason"] == "stop"


def test_a_json_object_is_json(demo_server: Server) -> None:
    choice = chat(demo_server, response_format={"type": "json_object"}, max_tokens=80)
    content = choice["message"]["content"]
    if choice["finish_reason"] == "length":
        assert content.startswith("{")
    else:
        assert isinstance(json.loads(content), dict)


@pytest.mark.parametrize(
    ("form", "pattern"),
    [
        ({"choice": ["Berlin", "Rome"]}, "Berlin|Rome"),
        ({"regex": r"[A-Z]{3}-\d{4}"}, r"[A-Z]{3}-\d{4}"),
        ({"grammar": 'root ::= ("yes" | "no") "!"'}, "(yes|no)!"),
        ({"json": {"type": "integer", "minimum": 0, "maximum": 9}}, r"\s*\d"),
    ],
)
def test_a_structured_output_has_its_form(
    demo_server: Server, form: dict[str, Any], pattern: str
) -> None:
    content = chat(demo_server, structured_outputs=form)["message"]["content"]
    assert re.fullmatch(pattern, content)


@pytest.mark.parametrize(
    "fields",
    [
        {"allowed_token_ids": [5]},
        {"allowed_token_ids": [5], "temperature": 1, "seed": 3},
        {"allowed_token_ids": [5], "logprobs": True, "top_logprobs": 2},
        {"bad_words": ["R", "Ro", "Rom", "Rome"]},
    ],
)
def test_a_form_of_which_parameters_forbid_all_is_the_clients_error(
    demo_server: Server, fields: dict[str, Any]
) -> None:
    body = {
        "model": demo_server.name,
        "messages": [{"role": "user", "content": "Describe Paris."}],
        "structured_outputs": {"choice": ["Rome"]},
        "temperature": 0,
        "max_tokens": 20,
    }
    status, answer = demo_server.post("/v1/chat/completions", body | fields)
    assert status == 400, answer
    assert f"{next(iter(fields))} forbids all that the request's grammar" in str(answer)
    assert chat(demo_server, max_tokens=4)["finish_reason"] == "length"


def test_a_form_is_kept_when_sampling_beside_free_text(demo_server: Server) -> None:
    form = {"regex": "(ab){3}"}
    choice = chat(demo_server, structured_outputs=form, temperature=2, seed=1)
    assert choice["message"]["content"] == "ababab"


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "describe_city"}}]
)
def test_a_demanded_tool_is_called_with_arguments_of_its_schema(
    demo_server: Server, choice: Any
) -> None:
    answer = chat(demo_server, tools=TOOLS, tool_choice=choice)
    (call,) = answer["message"]["tool_calls"]
    assert call["function"]["name"] == "describe_city"
    assert set(json.loads(call["function"]["arguments"])) == {"city", "size", "year"}


def test_a_tool_call_can_be_streamed(demo_server: Server) -> None:
    with demo_server.client() as client:
        stream = client.chat.completions.create(
            model=demo_server.name,
            messages=[{"role": "user", "content": "Describe Paris."}],
            temperature=0,
            max_tokens=160,
            tools=TOOLS,
            tool_choice="required",
            stream=True,
        )
        deltas = [chunk.choices[0].delta for chunk in stream if chunk.choices]
    calls = [call.function for delta in deltas for call in delta.tool_calls or ()]
    assert [call.name for call in calls if call.name] == ["describe_city"]
    assert set(json.loads("".join(call.arguments or "" for call in calls))) == set(
        CITY["properties"]
    )


def test_tools_that_are_only_offered_leave_the_model_free(demo_server: Server) -> None:
    assert "Paris" in chat(demo_server, tools=TOOLS, max_tokens=30)["message"]["content"]
