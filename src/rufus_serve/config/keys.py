"""API keys: who may call the endpoint, and how much. The file is read by server and command."""

import hashlib
import secrets
import stat
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AwareDatetime, Field, ValidationError

from rufus_serve.config.section import Section
from rufus_serve.errors import ConfigError

Scope = Literal["infer", "metrics", "admin"]
Count = Annotated[int, Field(ge=0)]
_ALL: tuple[Scope, ...] = ("infer", "metrics", "admin")


class ApiKey(Section):
    """One key's owner and limits; 0 is no limit."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._@-]{1,64}$")]
    """Name of the owner, in logs and metrics."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Hash of the key, in hexadecimal."""
    previous_sha256: Annotated[str, Field(pattern=r"^([0-9a-f]{64})?$")] = ""
    """Hash of the key before the last rotation, which is accepted as well."""
    previous_expires: AwareDatetime | None = None
    """Until when it is."""
    scopes: tuple[Scope, ...] = ("infer",)
    """`infer`: the model's routes; `metrics`: /metrics; `admin`: /version and /load."""
    expires: AwareDatetime | None = None
    """From when on it is refused, with a time zone."""
    models: tuple[str, ...] = ()
    """Models it may ask for. Empty: all."""
    requests_per_minute: Count = 0
    tokens_per_minute: Count = 0
    """Of prompts and answers together."""
    max_sequences: Count = 0
    """Sequences open at a time."""
    max_n: Count = 0
    """Largest `n`, if lower than limits.max_n."""
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Lower is scheduled earlier."""

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return _is_past(self.expires)

    @property
    def hashes(self) -> tuple[str, ...]:
        """Of what may be borne: the key, and the one before it while that is accepted."""
        if not self.previous_sha256 or _is_past(self.previous_expires):
            return (self.sha256,)
        return (self.sha256, self.previous_sha256)


def _is_past(moment: datetime | None) -> bool:
    return moment is not None and moment <= datetime.now(timezone.utc)


class KeyFile(Section):
    """A file of keys, as YAML."""

    keys: tuple[ApiKey, ...] = ()


ANONYMOUS = ApiKey(id="anonymous", sha256="0" * 64, scopes=_ALL)
"""Whoever calls an endpoint without keys."""


def new_key() -> str:
    """A fresh key, safe in headers and files."""
    return f"sk-{secrets.token_urlsafe(32)}"


def fingerprint(key: str) -> str:
    """What a file holds of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(path: Path, *, empty_too: bool = False) -> tuple[ApiKey, ...]:
    """The keys in the file at `path`; plain ones, a line each, may do everything.

    `empty_too`: it may hold no key, as after the last one was revoked.

    Raises:
        ConfigError: it cannot be read, is readable by everyone, or holds no key or a wrong one.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"api_key_file {path} cannot be read: {error}; make one with `rufus-serve key add`"
        ) from error
    if mode & stat.S_IROTH:
        raise ConfigError(
            f"api_key_file {path} is readable by everyone (mode {stat.S_IMODE(mode):04o}); "
            f"run `chmod o= {path}`"
        )
    keys = _structured(path, text) if _is_structured(text) else _plain(path, text)
    if not keys and not empty_too:
        raise ConfigError(f"api_key_file {path} holds no key; `rufus-serve key add` makes one")
    return keys


def write_keys(path: Path, keys: tuple[ApiKey, ...]) -> None:
    """Write atomically, readable by the owner alone or as the file was."""
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
    tree = KeyFile(keys=keys).model_dump(mode="json", exclude_defaults=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.touch(mode=0o600)
    partial.write_text(yaml.safe_dump(tree or {"keys": []}, sort_keys=False), encoding="utf-8")
    partial.chmod(mode)
    partial.replace(path)


def _is_structured(text: str) -> bool:
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if line and not line.startswith("#")), "")
    return first.startswith("keys:")


def _structured(path: Path, text: str) -> tuple[ApiKey, ...]:
    try:
        keys = KeyFile.model_validate(yaml.safe_load(text)).keys
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"api_key_file {path}: {where}: {first['msg']}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"api_key_file {path} is not YAML: {error}") from error
    for name in ("id", "sha256"):
        values = [getattr(key, name) for key in keys]
        twice = next((value for value in values if values.count(value) > 1), None)
        if twice:
            raise ConfigError(f"api_key_file {path} holds {name} {twice} twice; keep one")
    return keys


def _plain(path: Path, text: str) -> tuple[ApiKey, ...]:
    lines = [line.strip() for line in text.splitlines()]
    for number, line in enumerate(lines, 1):
        if line.startswith("#") or len(line.split()) > 1:
            raise ConfigError(
                f"{path}:{number}: not an API key: comments and spaces are not allowed in an "
                "api_key_file of one key a line"
            )
    hashes = dict.fromkeys(fingerprint(line) for line in lines if line)
    return tuple(ApiKey(id=f"key-{sha256[:8]}", sha256=sha256, scopes=_ALL) for sha256 in hashes)
