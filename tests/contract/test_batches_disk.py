"""`/v1/files` and `/v1/batches` on a disk that is full."""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from batch_site import CHAT, KEYS, Model, Site, answers, begin, lines, run, until

from rufus_serve.config.keys import write_keys


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own at the batches' folder, of 512 kB."""
    place = tmp_path / "batch"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("file systems cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all that is left of `disk`."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    return ballast


def test_a_full_disk_is_told_and_the_server_goes_on_once_there_is_room(
    tmp_path: Path, small_disk: Path
) -> None:
    write_keys(tmp_path / "keys", tuple(KEYS))
    model = Model()

    async def scenario() -> None:
        async with Site(tmp_path, model).serving() as client:
            file = await client.files.create(file=("in.jsonl", lines("a")), purpose="batch")
            ballast = fill(small_disk)
            for attempt in (
                client.files.create(file=("in.jsonl", lines("b")), purpose="batch"),
                client.batches.create(
                    input_file_id=file.id, endpoint=CHAT, completion_window="24h"
                ),
            ):
                with pytest.raises(openai.APIStatusError, match="disk refuses") as refused:
                    await attempt
                assert refused.value.status_code == 507
            assert [each.id for each in (await client.files.list()).data] == [file.id]
            assert [path.name for path in (small_disk / "files").iterdir()] == [file.id]
            assert (await client.batches.list()).data == []
            ballast.unlink()
            batch = await begin(client, lines("c"))
            done = await until(client, batch.id, "completed")
            assert set(await answers(client, done.output_file_id)) == {"id-0"}

    run(scenario)
    assert model.asked == {"c": 1}


def test_a_batch_that_a_full_disk_stops_ends_once_there_is_room(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rufus_serve.leader.api.batches.desk._DISK_S", 0.05)
    write_keys(tmp_path / "keys", tuple(KEYS))
    model = Model()
    model.full = 2  # so that the disk is full before it answers

    async def scenario() -> None:
        site = Site(tmp_path, model)
        async with site.serving() as client:
            batch = await begin(client, lines("a"))
            ballast = fill(small_disk)
            failed = await until(client, batch.id, "failed")
            assert [each.code for each in failed.errors.data] == ["storage_error"]
            ballast.unlink()
            while site.desk.uses(KEYS[0], failed.input_file_id):
                await asyncio.sleep(0.01)
            after = await begin(client, lines("b"))
            await until(client, after.id, "completed")
        async with Site(tmp_path, model).serving() as client:
            assert (await client.batches.retrieve(batch.id)).status == "failed"

    run(scenario)
    assert model.asked["b"] == 1
