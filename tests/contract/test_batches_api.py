"""`/v1/files` and `/v1/batches` as OpenAI's own client uses them, over a made-up model."""

import asyncio
import json
import re
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest
from batch_site import CHAT, KEYS, Model, Site, answers, begin, lines, run, until

from rufus_serve.config.keys import write_keys
from rufus_serve.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_keys(tmp_path / "keys", tuple(KEYS))
    return tmp_path


@pytest.fixture
def model() -> Model:
    return Model()


def test_a_batch_runs_to_its_files(folder: Path, model: Model) -> None:
    model.full = 2

    async def scenario() -> None:
        async with Site(folder, model).serving() as client:
            batch = await begin(client, lines("a", "refuse", "c"), metadata={"for": "test"})
            assert batch.status == "validating"
            done = await until(client, batch.id, "completed", "failed")
            counts = done.request_counts
            assert (counts.total, counts.completed, counts.failed) == (3, 2, 1)
            assert done.metadata == {"for": "test"}
            good = await answers(client, done.output_file_id)
            assert good["id-2"]["response"]["body"]["choices"][0]["message"]["content"] == "c"
            assert good["id-0"]["response"]["request_id"]
            (bad,) = (await answers(client, done.error_file_id)).values()
            assert (bad["custom_id"], bad["response"]["status_code"]) == ("id-1", 400)
            # Behind whoever waits for an answer.
            assert model.callers == {("alice", 52)}

    run(scenario)


def test_the_pages_program_runs_to_its_answers(
    folder: Path, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "batch.md").read_text()
    blocks = dict(re.findall(r"^```(\w+)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL))
    (folder / "in.jsonl").write_text(blocks["json"])
    monkeypatch.chdir(folder)
    printed: list[str] = []

    async def scenario() -> None:
        site = Site(folder, model)
        async with site.serving():
            with openai.OpenAI(base_url=f"{site.url}/v1", api_key="alice") as client:
                often = SimpleNamespace(sleep=lambda _: time.sleep(0.01))
                names = {"client": client, "time": often, "Path": Path, "print": printed.append}
                await asyncio.to_thread(exec, blocks["python"], names)

    run(scenario)
    (line,) = printed[0].splitlines()
    assert json.loads(line)["custom_id"] == "a"
    assert model.asked == {"Name a river.": 1}


def test_one_key_sees_nothing_of_another(folder: Path, model: Model) -> None:
    async def scenario() -> None:
        site = Site(folder, model)
        async with site.serving() as client, site.client("bob") as other:
            model.free = 0
            batch = await begin(client, lines("a"))
            await until(client, batch.id, "in_progress")
            for call in (
                other.batches.retrieve(batch.id),
                other.batches.cancel(batch.id),
                other.files.retrieve(batch.input_file_id),
                other.files.content(batch.input_file_id),
                other.files.delete(batch.input_file_id),
                other.batches.create(
                    input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"
                ),
            ):
                with pytest.raises(openai.NotFoundError):
                    await call
            assert (await other.batches.list()).data == []
            assert (await other.files.list()).data == []
            with pytest.raises(openai.ConflictError, match="cancel that first"):
                await client.files.delete(batch.input_file_id)

    run(scenario)


def test_a_restarted_server_goes_on_without_a_line_lost_or_twice(
    folder: Path, model: Model
) -> None:
    texts = [f"word {i}" for i in range(30)]

    async def scenario() -> None:
        model.free = 11
        async with Site(folder, model).serving() as client:
            batch = await begin(client, lines(*texts))
            while model.free:
                await asyncio.sleep(0.01)
        model.free = 10_000
        async with Site(folder, model).serving() as client:
            done = await until(client, batch.id, "completed", "failed")
            assert done.request_counts.completed == 30
            assert len(await answers(client, done.output_file_id)) == 30
        assert model.asked == Counter(texts)

    run(scenario)


def test_a_cancelled_batch_ends_at_once_and_keeps_its_answers(folder: Path, model: Model) -> None:
    async def scenario() -> None:
        async with Site(folder, model).serving() as client:
            model.free = 2
            batch = await begin(client, lines("a", "b", "c", "d"))
            while model.free:
                await asyncio.sleep(0.01)
            assert (await client.batches.cancel(batch.id)).status == "cancelling"
            done = await until(client, batch.id, "cancelled")
            assert (await answers(client, done.output_file_id)).keys() == {"id-0", "id-1"}
            assert model.cut_off == 2
            with pytest.raises(openai.ConflictError, match="is cancelled"):
                await client.batches.cancel(batch.id)

    run(scenario)


def test_a_revoked_key_answers_no_further_line(folder: Path, model: Model) -> None:
    async def scenario() -> None:
        site = Site(folder, model)
        async with site.serving() as client:
            model.free, model.full = 1, 10_000
            batch = await begin(client, lines("a"))
            write_keys(folder / "keys", tuple(KEYS[1:]))
            site.keys.reload()
            while site.desk._running:
                await asyncio.sleep(0.01)
        write_keys(folder / "keys", tuple(KEYS))
        async with Site(folder, model).serving() as client:
            done = await client.batches.retrieve(batch.id)
            assert (done.status, done.errors.data[0].code) == ("failed", "key_revoked")

    run(scenario)


WRONG_FILES = [
    (b"{\n", "invalid_json_line"),
    (lines("a", url="/v1/completions"), "invalid_url"),
    (lines("a", "b", custom_id="x"), "duplicate_custom_id"),
    (b"\n", "invalid_file"),
    (lines("x" * 12_000), "line_too_long"),
    (lines(*"abcdefgh"), "invalid_file"),
]


def test_a_file_that_is_no_batch_fails_before_anything_is_asked(folder: Path, model: Model) -> None:
    async def scenario() -> None:
        async with Site(folder, model, max_requests=5).serving() as client:
            for content, code in WRONG_FILES:
                batch = await begin(client, content)
                done = await until(client, batch.id, "failed")
                assert done.errors.data[0].code == code
                assert done.output_file_id is None
        assert not model.asked

    run(scenario)


def test_lists_come_in_pages(folder: Path, model: Model) -> None:
    async def scenario() -> None:
        async with Site(folder, model).serving() as client:
            ids = [(await begin(client, lines("a"))).id for _ in range(5)]
            for batch_id in ids:
                await until(client, batch_id, "completed")
            seen = [batch.id async for batch in await client.batches.list(limit=2)]
            assert seen == ids[::-1]
            inputs = [f.id async for f in await client.files.list(purpose="batch", order="asc")]
            assert len(inputs) == 5
            file = await client.files.delete(inputs[0])
            assert file.deleted
            everything = [f.id async for f in await client.files.list(limit=3)]
            assert len(everything) == 9

    run(scenario)


def test_wrong_and_too_large_requests_are_refused_by_name(folder: Path, model: Model) -> None:
    async def scenario() -> None:
        sizes = {"max_file_mb": 0.1, "max_stored_mb": 0.1, "max_open": 1}
        async with Site(folder, model, **sizes).serving() as client:
            upload, make = client.files.create, client.batches.create
            with pytest.raises(openai.APIStatusError, match=r"batch\.max_file_mb") as refusal:
                await upload(file=("x", b"x" * 200_000), purpose="batch")
            assert refusal.value.status_code == 413
            with pytest.raises(openai.BadRequestError, match="purpose must be batch"):
                await upload(file=("x", b"x"), purpose="fine-tune")
            with pytest.raises(openai.NotFoundError, match="no file"):
                await make(input_file_id="file-1", endpoint=CHAT, completion_window="24h")
            file = await upload(file=("x", lines("a")), purpose="batch")
            with pytest.raises(openai.BadRequestError, match="offers no embeddings"):
                await make(
                    input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h"
                )
            model.free = 0
            await make(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
            with pytest.raises(openai.RateLimitError, match=r"batch\.max_open"):
                await make(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
            await upload(file=("x", b"x" * 99_990), purpose="batch")
            with pytest.raises(openai.APIStatusError, match=r"batch\.max_stored_mb"):
                await upload(file=("x", b"x"), purpose="batch")

    run(scenario)


def test_a_folder_serves_one_server(folder: Path, model: Model) -> None:
    async def scenario() -> None:
        async with Site(folder, model).serving():
            second = Site(folder, model)
            with pytest.raises(ConfigError, match="in use by another server"):
                await second.desk.open()
            await second.desk.close()

    run(scenario)
