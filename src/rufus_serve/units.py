"""Sizes as people read them."""

GIB = 1 << 30


def gib(size_bytes: float) -> str:
    """`size_bytes` for a reader."""
    return f"{size_bytes / GIB:,.{1 if size_bytes >= 10 * GIB else 2}f} GiB"
