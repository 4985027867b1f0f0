import json
from pathlib import Path
from typing import Any

import pytest

from rufus_serve.batch.lines import BatchLine, Fault, Reply, answered, failed, key_of, parse, read

CHAT = "/v1/chat/completions"


def raw(**fields: Any) -> bytes:
    line = {"custom_id": "a", "method": "POST", "url": CHAT, "body": {"model": "m"}}
    return json.dumps(line | fields).encode()


def test_a_line_is_a_request() -> None:
    line = parse(raw(), 3)
    assert line == BatchLine(number=3, custom_id="a", url=CHAT, body={"model": "m"})


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (b"{", "invalid_json_line", "not JSON"),
        (b"\xff\n", "invalid_json_line", "not JSON"),
        (b"[]", "invalid_request", "Expected `object`"),
        (b"{}", "invalid_request", "custom_id"),
        (raw(custom_id=7), "invalid_request", "custom_id"),
        (raw(custom_id=""), "invalid_request", "1 to 512"),
        (raw(body="x"), "invalid_request", "body"),
        (raw(method="GET"), "invalid_request", "POST"),
        (raw(url="/v1/embeddings"), "invalid_url", "offers no embeddings"),
        (raw(url="/metrics"), "invalid_url", "choose one of"),
        (raw(url="/v1/completions"), "invalid_url", "the batch is for"),
        (raw(body={"stream": True}), "invalid_request", "no streams"),
    ],
)
def test_a_line_that_is_no_request_says_why(line: bytes, code: str, words: str) -> None:
    found = parse(line, 2, endpoint=CHAT)
    assert isinstance(found, Fault)
    assert (found.code, found.line) == (code, 2)
    assert words in found.message


def test_a_file_is_read_with_its_line_numbers_and_a_second_use_of_an_id_is_a_fault(
    tmp_path: Path,
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\n".join([raw(), b"", raw(custom_id="b"), raw()]))
    first, second, third = read(path)
    assert isinstance(first, BatchLine)
    assert isinstance(second, BatchLine)
    assert (first.number, second.number) == (1, 3)
    assert isinstance(third, Fault)
    assert (third.line, third.key, third.code) == (4, 4, "duplicate_custom_id")


def test_what_is_written_tells_which_line_it_answers() -> None:
    line = BatchLine(number=1, custom_id="ü", url=CHAT, body={})
    written = answered(line, Reply(status=200, request_id="r", body={"x": 1}))
    assert written.endswith(b"\n")
    assert json.loads(written)["response"] == {
        "status_code": 200, "request_id": "r", "body": {"x": 1},
    }  # fmt: skip
    assert key_of(written) == "ü"
    assert key_of(failed(Fault(line=4, code="c", message="m"))) == 4
    for other in (b"{}", b"[1]", b"x", b'{"custom_id": null, "error": null}'):
        with pytest.raises(ValueError, match="line"):
            key_of(other)


@pytest.mark.parametrize("length", [1, 99, 100, 101, 150, 199, 200, 201, 202, 1000])
def test_a_line_that_is_too_long_is_a_fault_and_the_next_one_is_read(
    tmp_path: Path, length: int
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"x" * length + b"\n" + raw() + b"\n" + b"x" * length)
    found = list(read(path, max_line_bytes=100))
    assert [line.line for line in found if isinstance(line, Fault)] == [1, 3]
    assert [line.number for line in found if isinstance(line, BatchLine)] == [2]
    code = "line_too_long" if length >= 100 else "invalid_json_line"
    assert isinstance(found[0], Fault)
    assert found[0].code == code
