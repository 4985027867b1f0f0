"""Chat, completions and responses through the official client."""

import json
import re
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from tests.e2e.server import Server

README = (Path(__file__).parents[2] / "README.md").read_text()
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(demo_server: Server):
    with demo_server.client() as client:
        yield client


def test_the_capital_of_france_is_paris(demo_server: Server, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=demo_server.name, messages=QUESTION, temperature=0, max_tokens=16
    )
    assert answer.choices[0].message.content == "The capital of France is Paris."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == 37
    assert answer.usage.completion_tokens == 8


def test_a_stream_brings_the_same_words_one_by_one_and_the_usage_last(
    demo_server: Server, client: openai.OpenAI
) -> None:
    stream = client.chat.completions.create(
        model=demo_server.name,
        messages=QUESTION,
        temperature=0,
        max_tokens=16,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    words = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices]
    assert "".join(word or "" for word in words) == "The capital of France is Paris."
    assert len(chunks) >= 7
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 8
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_a_completion_continues_its_prompt(demo_server: Server, client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=demo_server.name, prompt="The capital of France is", temperature=0, max_tokens=2
    )
    assert answer.choices[0].text == " Paris."
    assert answer.choices[0].finish_reason == "length"


def test_a_completion_may_echo_its_prompt(demo_server: Server, client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=demo_server.name, prompt="The capital of France is", temperature=0, max_tokens=2,
        echo=True,
    )  # fmt: skip
    assert answer.choices[0].text == "The capital of France is Paris."


def test_a_streamed_completion_equals_the_whole_one(
    demo_server: Server, client: openai.OpenAI
) -> None:
    fields = {"model": demo_server.name, "prompt": "Once upon a time", "temperature": 0}
    whole = client.completions.create(max_tokens=12, **fields).choices[0].text
    stream = client.completions.create(max_tokens=12, stream=True, **fields)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == whole


def test_several_prompts_in_one_request_are_answered_in_order(
    demo_server: Server, client: openai.OpenAI
) -> None:
    prompts = [f"The capital of {country} is" for country in ("France", "Italy", "Spain")]
    answer = client.completions.create(
        model=demo_server.name, prompt=prompts, temperature=0, max_tokens=2
    )
    texts = [choice.text for choice in sorted(answer.choices, key=lambda choice: choice.index)]
    assert texts == [" Paris.", " Rome.", " Madrid."]


def test_a_response_answers_whole_and_streamed(demo_server: Server, client: openai.OpenAI) -> None:
    fields = {"model": demo_server.name, "input": QUESTION, "temperature": 0}
    whole = client.responses.create(max_output_tokens=16, **fields)
    assert whole.output_text == "The capital of France is Paris."
    assert whole.usage.output_tokens == 8
    events = list(client.responses.create(max_output_tokens=16, stream=True, **fields))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert events[-1].type == "response.completed"


def test_the_model_is_listed_with_its_context_length(
    demo_server: Server, client: openai.OpenAI
) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == [demo_server.name]
    assert models[0].max_model_len == 1024


def test_tokenize_and_detokenize_are_inverse(demo_server: Server) -> None:
    text = "Hello, wörld!"
    status, answer = demo_server.post("/tokenize", {"model": demo_server.name, "prompt": text})
    assert (status, answer["max_model_len"]) == (200, 1024)
    assert answer["count"] == len(answer["tokens"])
    body = {"model": demo_server.name, "tokens": answer["tokens"]}
    assert demo_server.post("/detokenize", body) == (200, {"prompt": text})


def test_tokenize_applies_the_chat_template(demo_server: Server) -> None:
    body = {"model": demo_server.name, "messages": QUESTION}
    assert demo_server.post("/tokenize", body)[1]["count"] == 37


@pytest.mark.parametrize("path", ["/health", "/ready"])
def test_probes_tell_the_state(demo_server: Server, path: str) -> None:
    status, body = demo_server.get(path)
    assert status == 200
    assert json.loads(body) == {"state": "ready", "detail": ""}


def test_the_version_is_told(demo_server: Server) -> None:
    status, body = demo_server.get("/version")
    assert status == 200
    assert json.loads(body)["version"]


def test_metrics_count_tokens_and_requests(demo_server: Server) -> None:
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    before = [demo_server.metric(name) for name in names]
    demo_server.ask()
    after = [demo_server.metric(name) for name in names]
    assert [new - old for new, old in zip(after, before, strict=True)] == [37, 8]


@pytest.mark.parametrize(("language", "program"), [("bash", "bash"), ("python", sys.executable)])
def test_the_readmes_requests_are_answered(
    demo_server: Server, language: str, program: str
) -> None:
    (block,) = [
        text
        for text in re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
        if "127.0.0.1:8000/v1" in text
    ]
    block = block.replace("http://127.0.0.1:8000", demo_server.url)
    block = block.replace('"demo"', f'"{demo_server.name}"')
    done = subprocess.run(
        [program, "-c", block], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search("Paris|river", done.stdout, re.IGNORECASE), done.stdout
