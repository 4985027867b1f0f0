import asyncio
import gzip

import pytest

from rufus_serve.leader.api.bodies import parse_json, read_body
from rufus_serve.leader.api.http_error import HttpError


@pytest.mark.parametrize("raw", [b"", b"{", b'{"a": NaN}', b"[-Infinity]", b"\xff", b"[" * 99_999])
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    with pytest.raises(HttpError) as refused:
        parse_json(raw)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "raw",
    [
        rb'{"stop": ["\ud800"]}',
        rb'{"a": {"b": "x\uDC00y"}}',
        rb'{"\ud83d": 1}',
        b'["\xed\xa0\x80"]',
    ],
)
def test_half_of_a_surrogate_pair_is_refused_wherever_it_stands(raw: bytes) -> None:
    with pytest.raises(HttpError) as refused:
        parse_json(raw)
    assert refused.value.status == 400


def test_whole_pairs_and_other_escapes_are_text() -> None:
    assert parse_json(rb'["\ud83d\ude00", "\u00e9", "\\ud800"]') == [
        "\U0001f600",
        "\u00e9",
        "\\ud800",
    ]


def test_a_byte_order_mark_is_ignored() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    ("raw", "said"), [(b"", "is empty"), ('{"a": 1}'.encode("utf-16"), "not UTF-8 at byte 0")]
)
def test_a_body_that_is_no_text_is_called_so(raw: bytes, said: str) -> None:
    with pytest.raises(HttpError, match=said):
        parse_json(raw)


def test_half_of_a_pair_in_deeply_nested_lists_is_400() -> None:
    for depth in range(900, 1000, 5):
        with pytest.raises(HttpError) as refused:
            parse_json(b"[" * depth + rb'"\ud800"' + b"]" * depth)
        assert refused.value.status == 400


def read(raw: bytes, **headers: str) -> bytes:
    """The body of a request with `headers`."""

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": raw, "more_body": False}

    pairs = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    return asyncio.run(read_body({"headers": pairs}, receive, max_bytes=99, deadline_s=9))


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON ; charset=utf-8"])
def test_json_by_any_spelling_of_its_name_is_read(kind: str) -> None:
    assert read(b"{}", content_type=kind, content_encoding="identity") == b"{}"


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({}, "Content-Type is missing"),
        ({"content_type": "text/plain"}, "Content-Type is 'text/plain'"),
        ({"content_type": "application/x-www-form-urlencoded"}, "application/json"),
        ({"content_type": "application/json", "content_encoding": "gzip"}, "uncompressed"),
    ],
)
def test_what_says_that_it_is_no_plain_json_is_415(headers: dict[str, str], named: str) -> None:
    with pytest.raises(HttpError, match=named) as refused:
        read(gzip.compress(b"{}"), **headers)
    assert refused.value.status == 415
