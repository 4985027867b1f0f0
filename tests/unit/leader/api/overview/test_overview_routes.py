import asyncio
import hashlib
import json
import re
from pathlib import Path

import msgspec
from tests.unit.leader.api.asgi_call import Call

from rufus_serve.leader.api.http_error import Receive, Scope, Send, send_json
from rufus_serve.leader.api.overview import routes as routes_module
from rufus_serve.leader.api.overview.board import Board
from rufus_serve.leader.api.overview.readings import Sample
from rufus_serve.leader.api.overview.routes import PAGE, OverviewRoutes, page_files
from rufus_serve.leader.api.overview.views import Overview
from rufus_serve.protocol.messages import Status

READY = Status(state="ready", epoch=1, healthy=True, ready=True)
UI = Path(str(routes_module.__file__)).parent / PAGE


async def vllm(scope: Scope, receive: Receive, send: Send) -> None:
    await send_json(send, 418, b"{}")


def board(*, spoken: bool = True) -> Board:
    found = Board("m", num_open=lambda: 0, counts=dict, read=lambda at: Sample(at, {}, {}))
    if spoken:
        found.take(READY)
    return found


def ask(path: str, *, page: bool = True, spoken: bool = True) -> Call:
    async def scenario() -> Call:
        routes = OverviewRoutes(vllm, board(spoken=spoken), page=page)
        call = Call(routes, path=path, method="GET")
        await call.task
        return call

    return asyncio.run(scenario())


def test_the_overview_is_one_json_object() -> None:
    found = msgspec.json.decode(ask("/overview").text, type=Overview)
    assert found.model == "m"
    assert ask("/overview", spoken=False).status == 503
    assert ask("/v1/models").status == 418


def test_watchers_get_events_until_they_hang_up_or_the_server_ends() -> None:
    async def scenario() -> None:
        routes = OverviewRoutes(vllm, board(), page=True)
        calls = [Call(routes, path="/overview/events", method="GET") for _ in range(2)]
        while not all(len(call.sent) > 1 for call in calls):
            await asyncio.sleep(0)
        assert calls[0].headers["content-type"] == "text/event-stream"
        calls[0].incoming.put_nowait({"type": "http.disconnect"})
        await calls[0].task
        assert not calls[1].task.done()
        routes.close()
        await calls[1].task
        (event,) = calls[1].text.strip().split("\n\n")
        assert json.loads(event.removeprefix("data: "))["state"] == "ready"

    asyncio.run(scenario())


def test_too_many_watchers_are_refused() -> None:
    async def scenario() -> None:
        routes = OverviewRoutes(vllm, board(), page=True)
        calls = [Call(routes, path="/overview/events", method="GET") for _ in range(65)]
        while not all(call.sent for call in calls):
            await asyncio.sleep(0)
        assert [call.status for call in calls].count(503) == 1
        routes.close()
        await asyncio.gather(*(call.task for call in calls))

    asyncio.run(scenario())


def test_the_page_is_served_with_guards_and_nothing_beside_it() -> None:
    assert ask("/ui").headers["location"] == "ui/"
    index = ask("/ui/")
    assert "default-src 'none'" in index.headers["content-security-policy"]
    assert "unsafe" not in index.headers["content-security-policy"]
    assert index.text.startswith("<!doctype html>")
    for path in ("/ui/../board.py", "/ui/vendor/", "/ui/nothing.js", "/ui/vendor/LICENSE-htm"):
        assert ask(path).status == 404
    assert "http.ui" in ask("/ui/", page=False).text


def test_all_that_the_page_loads_is_there_and_its_own() -> None:
    named = set()
    for kind, content in page_files().values():
        if kind in (b"text/html", b"text/javascript"):
            text = content.decode()
            named |= set(re.findall(r'(?:src|href)="([^"]+\.(?:js|css))"', text))
            named |= set(re.findall(r'from "\./([^"]+)"', text))
            assert not re.findall(r"https?://(?!www\.w3\.org)[a-z]", text)
    assert named <= page_files().keys()
    assert len(named) > 5
    assert not re.search(r"<script(?![^>]*src=)|style=\"|\son\w+=\"", ask("/ui/").text)


def test_what_is_vendored_is_what_was_published() -> None:
    stated = (UI / "vendor" / "README.md").read_text()
    vendored = (UI / "vendor" / "htm-preact.js").read_bytes()
    assert hashlib.sha256(vendored).hexdigest() in stated
    for licence in ("LICENSE-htm", "LICENSE-preact"):
        assert (UI / "vendor" / licence).stat().st_size > 1000
