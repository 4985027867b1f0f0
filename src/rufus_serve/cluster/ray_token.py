"""Ray's authentication token, derived from the group's so that neither reveals the other."""

import hashlib
import hmac


def ray_token(group_token: str) -> str:
    """64 hexadecimal digits; the same on every host of the group."""
    return hmac.new(group_token.encode(), b"rufus-serve ray token v1", hashlib.sha256).hexdigest()
