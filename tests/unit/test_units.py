import pytest

from rufus_serve.units import GIB, gib


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0.00 GiB"),
        (GIB // 4, "0.25 GiB"),
        (12.25 * GIB, "12.2 GiB"),
        (2000 * GIB, "2,000.0 GiB"),
    ],
)
def test_sizes_are_told_with_two_or_three_digits(size_bytes: float, text: str) -> None:
    assert gib(size_bytes) == text
