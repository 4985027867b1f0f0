import pytest

from rufus_serve.leader.api.bodies import parse_json
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
