"""What clients, browsers and keys meet at the endpoint of a running server."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.e2e.server import Server, serving

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ORIGIN = "https://chat.example"
TREE = {
    "type": "object",
    "properties": {"v": {"type": "boolean"}, "below": {"type": "array", "items": {"$ref": "#"}}},
    "required": ["v"],
    "additionalProperties": False,
}
OBJECT_A = {"type": "object", "properties": {"b": {"$ref": "#/$defs/b"}}}
OBJECT_B = {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}}
EACH_OTHER = {"$defs": {"a": OBJECT_A, "b": OBJECT_B}, "$ref": "#/$defs/a"}


class Keyed:
    """A server, asked with a key."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.file, self.audit = server, folder / "keys", folder / "audit"
        self.key = self.add("alice")

    def add(self, name: str, *flags: str) -> str:
        return run_key("add", name, f"--file={self.file}", *flags)

    def ask(
        self, path: str, body: Any = None, *, key: str | None = None, method: str = "", **more: str
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers and body of the answer."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if key != "":
            headers["Authorization"] = f"Bearer {key or self.key}"
        headers |= {name.replace("_", "-"): value for name, value in more.items()}
        request = urllib.request.Request(
            f"{self.server.url}{path}", data=data, headers=headers, method=method or None
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, dict(answer.headers.items()), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers.items()), error.read().decode()

    def audited(self, request_id: str) -> dict[str, Any]:
        """The line of a request, which is written once its answer is out."""
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            lines = [json.loads(line) for line in self.audit.read_text().splitlines()]
            found = [line for line in lines if line["request_id"] == request_id]
            if found:
                return dict(found[0])
            time.sleep(0.05)
        raise AssertionError(f"no line of {request_id}")

    def chat(self, **fields: Any) -> tuple[int, Any]:
        messages = [{"role": "user", "content": "hi"}]
        body = {"model": self.server.name, "messages": messages, "max_tokens": 8} | fields
        status, _, text = self.ask(CHAT, body)
        return status, json.loads(text)


def run_key(*arguments: str) -> str:
    command = [str(Path(sys.executable).parent / "rufus-serve"), "key", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture(scope="module")
def keyed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    folder = tmp_path_factory.mktemp("front")
    run_key("add", "first", f"--file={folder / 'keys'}")
    flags = (
        "--cluster.kind=local", f"--api-key-file={folder / 'keys'}", "--max-model-len=512",
        f"--http.audit-log={folder / 'audit'}", f"--http.cors-origins={ORIGIN}",
        "--limits.cap-max-tokens", f"--batch.folder={folder / 'batches'}",
    )  # fmt: skip
    with serving(tiny_model, *flags) as server:
        found = Keyed(server, folder)
        deadline = time.monotonic() + 15
        while found.ask("/v1/models")[0] != 200:
            assert time.monotonic() < deadline, "a new key is not taken"
            time.sleep(0.2)
        yield found


def test_a_batch_of_openais_client_is_answered_by_the_model(keyed: Keyed) -> None:
    bodies = [
        {"model": keyed.server.name, "prompt": "a b c", "max_tokens": 4, "temperature": 0},
        {"model": keyed.server.name, "prompt": "a b c", "max_tokens": -4},
    ]
    lines = [
        {"custom_id": f"id-{i}", "method": "POST", "url": COMPLETIONS, "body": body}
        for i, body in enumerate(bodies)
    ]
    content = "\n".join(map(json.dumps, lines)).encode()
    with openai.OpenAI(base_url=f"{keyed.server.url}/v1", api_key=keyed.key) as client:
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h"
        )
        deadline = time.monotonic() + 60
        while batch.status not in ("completed", "failed"):
            assert time.monotonic() < deadline, batch
            time.sleep(0.05)
            batch = client.batches.retrieve(batch.id)
        (good,) = map(json.loads, client.files.content(batch.output_file_id).text.splitlines())
        (bad,) = map(json.loads, client.files.content(batch.error_file_id).text.splitlines())
    assert good["response"]["body"]["usage"]["completion_tokens"] == 4
    assert "max_tokens must be at least 1" in bad["response"]["body"]["error"]["message"]


def test_the_page_is_open_and_what_it_shows_is_not(keyed: Keyed) -> None:
    assert keyed.ask("/ui/", key="")[0] == 200
    assert keyed.ask("/overview", key="")[0] == 401
    watcher, deadline = keyed.add("watcher", "--scope", "metrics"), time.monotonic() + 15
    while (answer := keyed.ask("/overview", key=watcher))[0] == 401:
        assert time.monotonic() < deadline, "a new key is not taken"
        time.sleep(0.2)
    text = answer[2]
    assert json.loads(text)["groups"][0]["state"] == "ready"


def schema(value: Any) -> dict[str, Any]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}
    }


@pytest.mark.parametrize("wanted", [TREE, EACH_OTHER])
def test_a_schema_may_refer_to_itself(keyed: Keyed, wanted: Any) -> None:
    status, answer = keyed.chat(**schema(wanted), max_tokens=300)
    assert status == 200
    choice = answer["choices"][0]
    assert choice["finish_reason"] == "length" or isinstance(
        json.loads(choice["message"]["content"]), dict
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"structured_outputs": {"regex": r"[^\s\S]"}}, "no text matches"),
        ({"structured_outputs": {"regex": r"a[^\s\S]"}}, "no text matches"),
        ({"structured_outputs": {"grammar": "root ::= root"}}, "no text matches"),
        (schema({"properties": {f"p{n}": {} for n in range(1000)}}), "max_schema_properties"),
        ({"structured_outputs": {"regex": "(((("}}, "not closed"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_matched_is_400_streamed_or_not(
    keyed: Keyed, fields: dict[str, Any], said: str, stream: bool
) -> None:
    status, answer = keyed.chat(**fields, stream=stream)
    assert status == 400
    assert said in answer["error"]["message"]


def test_a_grammar_that_recurses_on_the_left_or_matches_nothing_much_is_served(
    keyed: Keyed,
) -> None:
    status, answer = keyed.chat(structured_outputs={"grammar": 'root ::= root "a" | "b"'})
    assert status == 200
    assert re.fullmatch("ba*", answer["choices"][0]["message"]["content"])
    assert keyed.chat(structured_outputs={"grammar": 'root ::= (""*)*'})[0] == 200


def test_several_greedy_answers_are_equal(keyed: Keyed) -> None:
    status, answer = keyed.chat(n=3, temperature=0)
    assert status == 200
    texts = [choice["message"]["content"] for choice in answer["choices"]]
    assert texts == texts[:1] * 3


def test_beams_and_scores_are_served(keyed: Keyed) -> None:
    body = {"model": keyed.server.name, "prompt": "word", "max_tokens": 4}
    status, _, text = keyed.ask(COMPLETIONS, body | {"use_beam_search": True, "n": 2})
    assert status == 200, text
    assert len(json.loads(text)["choices"]) == 2
    asked = {"query": "Good?", "items": [" yes", " no"], "label_token_ids": [1, 2]}
    status, _, text = keyed.ask("/generative_scoring", asked | {"model": keyed.server.name})
    assert status == 200, text
    assert len(json.loads(text)["data"]) == 2


def test_an_editors_max_tokens_is_capped_where_so_configured(keyed: Keyed) -> None:
    assert keyed.chat(max_tokens=65_535, stop=["e", "a"])[0] == 200


def test_half_a_surrogate_pair_is_400(keyed: Keyed) -> None:
    body = {"model": keyed.server.name, "messages": [{"role": "user", "content": "x"}]}
    for name in ("stop", "bad_words"):
        text = json.dumps(body | {name: ["HALF"]}).replace("HALF", r"\ud800")
        assert keyed.ask(CHAT, text.encode())[0] == 400


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_that_is_cut_off_says_so_and_that_it_is_not_stored(
    keyed: Keyed, stream: bool
) -> None:
    body = {"model": keyed.server.name, "input": "hi", "max_output_tokens": 4, "stream": stream}
    status, _, text = keyed.ask(RESPONSES, body)
    assert status == 200
    if stream:
        events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        assert events[-1]["type"] == "response.incomplete"
        text = json.dumps(events[-1]["response"])
    response = json.loads(text)
    assert response["status"] == response["output"][-1]["status"] == "incomplete"
    assert response["incomplete_details"]["reason"] == "max_output_tokens"
    assert response["store"] is False
    status, _, text = keyed.ask(RESPONSES, body | {"previous_response_id": response["id"]})
    assert (status, "stores no responses" in text) == (400, True)
    assert keyed.ask(f"{RESPONSES}/{response['id']}")[0] == 404


def test_a_browser_may_call_from_the_origin_named_and_reads_refusals(keyed: Keyed) -> None:
    asks = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "x"}
    status, headers, _ = keyed.ask(CHAT, method="OPTIONS", key="", Origin=ORIGIN, **asks)
    assert (status, headers["access-control-allow-origin"]) == (200, ORIGIN)
    for path, key, expected in (
        (CHAT, "", 401),
        ("/nothing", None, 404),
        ("/v1/models", None, 200),
    ):
        status, headers, _ = keyed.ask(path, key=key, Origin=ORIGIN)
        assert (status, headers["access-control-allow-origin"]) == (expected, ORIGIN)
    _, headers, _ = keyed.ask("/v1/models", Origin="https://elsewhere.example")
    assert "access-control-allow-origin" not in headers


def test_a_key_does_what_its_scopes_say_until_it_is_revoked(keyed: Keyed) -> None:
    scrape = keyed.add("prometheus", "--scope=metrics")
    deadline = time.monotonic() + 10
    while keyed.ask("/metrics", key=scrape)[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert keyed.ask("/v1/models", key=scrape)[0] == 403
    assert keyed.ask("/metrics")[0] == keyed.ask("/version")[0] == 403
    run_key("revoke", "prometheus", f"--file={keyed.file}")
    deadline = time.monotonic() + 10
    while keyed.ask("/metrics", key=scrape)[0] != 401:
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_each_request_leaves_one_line_that_tells_who_and_how_much_but_not_what(
    keyed: Keyed,
) -> None:
    body = {"model": keyed.server.name, "prompt": "secret words", "max_tokens": 5}
    status, headers, _ = keyed.ask(
        COMPLETIONS, body | {"ignore_eos": True}, X_Request_Id="my-request"
    )
    assert (status, headers["x-request-id"]) == (200, "my-request")
    line = keyed.audited("my-request")
    assert line["key_id"] == "alice"
    assert (line["route"], line["model"], line["status"]) == (COMPLETIONS, keyed.server.name, 200)
    assert line["output_tokens"] == 5
    assert line["prompt_tokens"] > 0
    assert 0 < line["ttft_s"] <= line["duration_s"]
    assert "secret" not in keyed.audit.read_text()
    assert keyed.audit.stat().st_mode & 0o077 == 0
    assert os.access(keyed.audit, os.R_OK)
