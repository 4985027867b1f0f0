"""The API keys in force: found by their hash, and read again when their file changes."""

import asyncio
import hmac
import logging
from pathlib import Path

from rufus_serve.config.keys import ANONYMOUS, ApiKey, fingerprint, read_keys
from rufus_serve.errors import ConfigError
from rufus_serve.leader.api.http_error import Scope

_log = logging.getLogger(__name__)
_RELOAD_S = 2.0


class KeyRing:
    """Who calls, by the request's headers; event loop only."""

    def __init__(self, path: Path | None) -> None:
        """Read the file; without one, every caller is anonymous and may do everything.

        Raises:
            ConfigError: the file cannot be used.
        """
        self._path = path
        self._keys = read_keys(path) if path else ()
        self._seen = self._version()

    @property
    def is_shared(self) -> bool:
        """Whether callers are told apart."""
        return self._path is not None

    def find(self, scope: Scope) -> ApiKey | None:
        """The key that a request bears; None if it bears none that is in force."""
        if self._path is None:
            return ANONYMOUS
        given = fingerprint(_borne(scope).decode("latin-1"))
        # All are compared, so that the time taken tells nothing.
        found = [
            key for key in self._keys for each in key.hashes if hmac.compare_digest(each, given)
        ]
        return found[0] if found and not found[0].expired else None

    def named(self, key_id: str) -> ApiKey | None:
        """The key of a name, if it is in force."""
        if self._path is None:
            return ANONYMOUS if key_id == ANONYMOUS.id else None
        found = next((key for key in self._keys if key.id == key_id), None)
        return found if found and not found.expired else None

    async def keep_fresh(self) -> None:
        """Follow the file; one that turned unusable is logged, and what was read stays in force."""
        while self._path:
            await asyncio.sleep(_RELOAD_S)
            self.reload()

    def reload(self) -> None:
        """Read the file again if it changed."""
        seen = self._version()
        if self._path is None or seen == self._seen:
            return
        self._seen = seen
        try:
            self._keys = read_keys(self._path)
        except ConfigError as error:
            _log.error("the keys read before stay in force: %s", error)
        else:
            _log.info("%d API keys are in force", len(self._keys))

    def _version(self) -> tuple[int, int, int]:
        try:
            stat = self._path.stat() if self._path else None
        except OSError:
            stat = None
        return (stat.st_mtime_ns, stat.st_ino, stat.st_size) if stat else (0, 0, 0)


def _borne(scope: Scope) -> bytes:
    """The key in a request's headers; empty if there is none."""
    headers = dict(scope["headers"])
    if b"x-api-key" in headers:
        return bytes(headers[b"x-api-key"])
    scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
    return bytes(key.strip()) if scheme.lower() == b"bearer" else b""
