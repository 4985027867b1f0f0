"""The uniform numbers that rows draw their tokens by."""

import hashlib
import secrets

_BITS = 53
"""Of a float64's mantissa."""


def uniform(seed: int, position: int) -> float:
    """The number of [0, 1) for the `position`-th token of a request with `seed`.

    A function of both and nothing else, so a request that is computed again, or elsewhere,
    draws the same tokens.
    """
    digest = hashlib.blake2b(b"%d %d" % (seed, position), digest_size=8).digest()
    return float((int.from_bytes(digest, "little") >> (64 - _BITS)) / (1 << _BITS))


def any_seed() -> int:
    """For a request without; another one each time, in processes forked of one parent too."""
    return secrets.randbits(64)
