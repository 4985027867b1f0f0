import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rufus_serve.channel.reply_memory import ReplyReader, ReplyWriter, TornReply
from rufus_serve.errors import EndpointError

CAPACITY = 8192


@pytest.fixture
def writer():
    writer = ReplyWriter(capacity=CAPACITY, checksums=True)
    yield writer
    writer.close()


@pytest.fixture
def reader(writer):
    reader = ReplyReader(writer.offer())
    yield reader
    reader.close()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(st.binary(max_size=900), min_size=1, max_size=4), st.booleans()),
        max_size=40,
    )
)
def test_replies_come_out_as_they_were_put_in_or_are_not_taken(replies):
    writer = ReplyWriter(capacity=CAPACITY, checksums=True)
    reader = ReplyReader(writer.offer())
    waiting = []
    for frames, catches_up in replies:
        note = writer.put(frames, epoch=1)
        if note is not None:
            waiting.append((note, frames))
        while waiting and (catches_up or note is None):
            taken, expected = waiting.pop(0)
            assert [bytes(frame) for frame in reader.take(taken)] == expected
    reader.close()
    writer.close()


def test_a_writer_waits_for_nobody(writer, reader):
    notes = []
    while (note := writer.put([bytes(1000)], epoch=1)) is not None:
        notes.append(note)
    assert len(notes) == CAPACITY // 1024
    reader.take(notes[0])
    assert writer.put([bytes(1000)], epoch=1) is not None
    assert writer.put([bytes(CAPACITY)], epoch=1) is None


def test_what_was_read_is_no_view_of_memory_that_is_written_again(writer, reader):
    first = reader.take(writer.put([b"first" * 200], epoch=1))
    for _ in range(20):
        reader.take(writer.put([b"other" * 200], epoch=1))
    assert bytes(first[0]) == b"first" * 200


@pytest.mark.parametrize(
    "change",
    [
        {"sequence": 3},
        {"sequence": 0},
        {"place": 4096},
        {"place": -64},
        {"place": CAPACITY - 64},
        {"frame_sizes": (900,)},
        {"frame_sizes": (-8, 1008)},
        {"frame_sizes": (CAPACITY,)},
    ],
)
def test_a_note_of_something_else_is_torn(writer, reader, change):
    note = writer.put([bytes(1000)], epoch=1)
    with pytest.raises(TornReply):
        reader.take(msgspec.structs.replace(note, **change))


def test_a_reply_is_taken_once(writer, reader):
    note = writer.put([b"a" * 1000], epoch=1)
    reader.take(note)
    with pytest.raises(TornReply, match="reply 1 after 1"):
        reader.take(note)


def test_a_payload_that_changed_has_another_checksum(writer, reader):
    note = writer.put([b"a" * 1000], epoch=1)
    with Path(writer.offer().path).open("r+b") as memory:
        memory.seek(4096 + 500)
        memory.write(b"x")
    with pytest.raises(TornReply, match="checksum"):
        reader.take(note)


@pytest.mark.parametrize(
    "change",
    [
        {"boot_id": "another host"},
        {"path": "/proc/1/fd/999999"},
        {"path": f"/proc/{os.getpid()}/fd/0"},
        {"path": "/dev/null"},
        {"secret": "00" * 16},
        {"capacity": CAPACITY * 2},
    ],
)
def test_memory_that_is_not_the_followers_is_not_opened(writer, change):
    with pytest.raises(EndpointError):
        ReplyReader(msgspec.structs.replace(writer.offer(), **change))


def test_memory_cannot_shrink_under_its_reader(writer, reader):
    with Path(writer.offer().path).open("r+b") as memory, pytest.raises(PermissionError):
        memory.truncate(0)


def test_nothing_is_left_when_both_are_gone():
    writer = ReplyWriter(capacity=CAPACITY)
    offer = writer.offer()
    reader = ReplyReader(offer)
    writer.close()
    reader.close()
    with pytest.raises(EndpointError):
        ReplyReader(offer)
