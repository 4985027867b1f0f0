"""The group's secret token, and the CurveZMQ keys that all its sockets derive from it."""

import hashlib
import hmac
import secrets
import stat
from pathlib import Path

import msgspec
import zmq
from zmq.utils import z85

from rufus_serve.errors import ConfigError

_SALT = b"rufus-serve curve keys v1"
_MIN_TOKEN_CHARS = 16


class GroupKeys(msgspec.Struct, frozen=True, kw_only=True):
    """Z85 key pairs: one for every bound socket of the group, one for every connecting socket."""

    server_public: bytes
    server_secret: bytes
    client_public: bytes
    client_secret: bytes

    @classmethod
    def from_token(cls, token: str) -> "GroupKeys":
        """The keys of the group that knows `token`; the same on every host."""
        server_public, server_secret = _key_pair(token, b"server")
        client_public, client_secret = _key_pair(token, b"client")
        return cls(
            server_public=server_public,
            server_secret=server_secret,
            client_public=client_public,
            client_secret=client_secret,
        )

    def __repr__(self) -> str:
        return f"GroupKeys(server_public={self.server_public.decode()!r})"


def new_token() -> str:
    """A fresh 256-bit token, safe in URLs and files."""
    return secrets.token_urlsafe(32)


def read_token(path: Path | str) -> str:
    """The token in the file at `path`, without surrounding whitespace.

    Raises:
        ConfigError: the file is missing, unreadable, empty, too short or readable by everyone.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"token file {path} cannot be read: {error}; make one with `openssl rand -hex 32`"
        ) from error
    if mode & stat.S_IROTH:
        raise ConfigError(
            f"token file {path} is readable by everyone (mode {stat.S_IMODE(mode):04o}); "
            f"run `chmod 600 {path}`"
        )
    if len(token) < _MIN_TOKEN_CHARS:
        raise ConfigError(
            f"token file {path} holds {len(token)} characters, fewer than {_MIN_TOKEN_CHARS}; "
            "make one with `openssl rand -hex 32`"
        )
    return token


def _key_pair(token: str, purpose: bytes) -> tuple[bytes, bytes]:
    """(public, secret) for `purpose`, Z85."""
    secret = z85.encode(_hkdf_sha256(token.encode(), info=b"curve25519 " + purpose))
    return zmq.curve_public(secret), secret


def _hkdf_sha256(key_material: bytes, *, info: bytes) -> bytes:
    """32 bytes by RFC 5869; one block of output, hence a single expand step."""
    extracted = hmac.digest(_SALT, key_material, hashlib.sha256)
    return hmac.digest(extracted, info + b"\x01", hashlib.sha256)
