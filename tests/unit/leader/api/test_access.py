"""Keys, scopes and the allow-list of routes."""

import asyncio
import os
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from tests.unit.leader.api.asgi_call import Call

from rufus_serve.config.keys import ApiKey, KeyFile, fingerprint, write_keys
from rufus_serve.errors import ConfigError
from rufus_serve.leader.api.access import Access
from rufus_serve.leader.api.http_error import Receive, Scope, Send, send_json
from rufus_serve.leader.api.key_ring import KeyRing
from rufus_serve.leader.api.routes import ROUTES, listed_paths

INFER = ApiKey(id="alice", sha256=fingerprint("alice-key"))
SCRAPE = ApiKey(id="prometheus", sha256=fingerprint("scrape-key"), scopes=("metrics",))


async def vllm(scope: Scope, receive: Receive, send: Send) -> None:
    await send_json(send, 200, b"{}")


def key_file(folder: Path, *keys: ApiKey) -> Path:
    write_keys(folder / "keys", keys or (INFER, SCRAPE))
    return folder / "keys"


def ask(ring: KeyRing, path: str, *, docs: bool = False, **request: Any) -> Call:
    async def scenario() -> Call:
        call = Call(Access(vllm, ring, docs=docs), path=path, **request)
        await call.task
        return call

    return asyncio.run(scenario())


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/models", {}, 401),
        ("/v1/models", {"Authorization": "Bearer wrong"}, 401),
        ("/v1/models", {"Authorization": "alice-key"}, 401),
        ("/metrics", {}, 401),
        ("/nothing", {}, 401),
        ("/v1/models", {"Authorization": "Bearer alice-key"}, 200),
        ("/v1/models", {"Authorization": "bearer alice-key"}, 200),
        ("/v1/models", {"X-Api-Key": "alice-key"}, 200),
        ("/metrics", {"X-Api-Key": "alice-key"}, 403),
        ("/version", {"X-Api-Key": "alice-key"}, 403),
        ("/metrics", {"X-Api-Key": "scrape-key"}, 200),
        ("/v1/models", {"X-Api-Key": "scrape-key"}, 403),
        ("/nothing", {"X-Api-Key": "alice-key"}, 404),
    ],
)
def test_a_key_opens_what_its_scopes_say(
    tmp_path: Path, path: str, headers: dict[str, str], status: int
) -> None:
    ring = KeyRing(key_file(tmp_path))
    assert ask(ring, path, method="GET", headers=headers).status == status


@pytest.mark.parametrize(
    "path",
    [
        "/collective_rpc", "/update_weights", "/sleep", "/server_info", "/start_profile",
        "/v1/systemone", "/kv_event_sources", "/inference/v1/generate", "/abort_requests",
        "/tokenizer_info", "/v1/chat/completions/render", "//v1/models", "/v1/models/", "/",
        "/v1/responses/resp_1", "/docs", "/openapi.json", "/metrics/x", "/v1/embeddings",
    ],
)  # fmt: skip
def test_what_is_not_listed_is_404_for_everyone(path: str) -> None:
    for method in ("GET", "POST"):
        call = ask(KeyRing(None), path, method=method)
        assert call.status == 404
        assert '"type": "NotFoundError"' in call.text


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/chat/completions/", "/v1/chat/completions"),
        ("/chat/completions", "/v1/chat/completions"),
        ("/v1/v1/models", "/v1/models"),
    ],
)
def test_the_route_that_was_meant_is_named(path: str, meant: str) -> None:
    assert f"{path} is no route of this server; {meant} is" in ask(KeyRing(None), path).text


@pytest.mark.parametrize(
    ("path", "feature"),
    [
        ("/v1/embeddings", "embeddings"),
        ("/v1/embeddings/", "embeddings"),
        ("/score", "scoring"),
        ("/v2/rerank", "reranking"),
        ("/v1/audio/transcriptions", "audio"),
        ("/v1/load_lora_adapter", "LoRA"),
        ("/v1/responses/resp_1", "stores no responses"),
        ("/docs", "http.docs"),
    ],
)
def test_a_route_of_an_absent_feature_names_it(path: str, feature: str) -> None:
    assert feature in ask(KeyRing(None), path).text


def test_documentation_is_served_when_asked_for() -> None:
    assert ask(KeyRing(None), "/openapi.json", method="GET", docs=True).status == 200


def test_the_document_tells_of_listed_routes_and_methods_only() -> None:
    operation = {"summary": "x"}
    both = {"get": operation, "post": operation}
    documented = {"/ping": both, "/v1/systemone": both, "/v1/completions": both}
    assert listed_paths(documented) == {
        "/ping": {"get": operation},
        "/v1/completions": {"post": operation},
    }


def test_every_route_takes_its_own_methods_only() -> None:
    for path, route in ROUTES.items():
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS"):
            call = ask(KeyRing(None), path, method=method)
            assert call.status == (200 if method in route.methods else 405)
            assert call.status == 200 or call.headers["allow"] == ", ".join(route.methods)


def test_keys_follow_their_file(tmp_path: Path) -> None:
    path = key_file(tmp_path)
    ring = KeyRing(path)
    with_key = {"method": "GET", "headers": {"X-Api-Key": "alice-key"}}
    key_file(tmp_path, SCRAPE)
    ring.reload()
    assert ask(ring, "/v1/models", **with_key).status == 401
    key_file(tmp_path, INFER)
    ring.reload()
    assert ask(ring, "/v1/models", **with_key).status == 200


def test_a_file_that_becomes_unusable_leaves_the_keys_in_force(tmp_path: Path) -> None:
    path = key_file(tmp_path)
    ring = KeyRing(path)
    path.write_text("keys: [{}]")
    ring.reload()
    assert ask(ring, "/v1/models", method="GET", headers={"X-Api-Key": "alice-key"}).status == 200


def test_an_expired_key_is_refused() -> None:
    past = KeyFile.model_validate(
        {"keys": [{"id": "old", "sha256": "0" * 64, "expires": "2020-01-01T00:00:00Z"}]}
    )
    assert past.keys[0].expired


@pytest.mark.parametrize(("year", "status"), [(2020, 401), (2999, 200)])
def test_the_key_before_a_rotation_is_its_owners_while_it_is_accepted(
    tmp_path: Path, year: int, status: int
) -> None:
    until = datetime(year, 1, 1, tzinfo=timezone.utc)
    kept = {"previous_sha256": fingerprint("old"), "previous_expires": until}
    ring = KeyRing(key_file(tmp_path, INFER.model_copy(update=kept)))
    for key, expected in (("alice-key", 200), ("old", status), ("", 401)):
        found = ask(ring, "/v1/models", method="GET", headers={"X-Api-Key": key})
        assert found.status == expected


def test_every_file_of_keys_that_is_wrong_says_so_at_start(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    for text, said in (("# keys\n", "not an API key"), ("", "no key"), ("keys: 5", "keys")):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(ConfigError, match=said):
            KeyRing(path)


def test_reloading_looks_at_the_file_alone(tmp_path: Path) -> None:
    path = key_file(tmp_path)
    ring = KeyRing(path)
    os.utime(path, (time.time() + 5,) * 2)
    ring.reload()
    assert ring.is_shared
