"""Reads what the supervisor wrote for this leader."""

import os
from pathlib import Path

import msgspec
import pydantic

from rufus_serve.config import ServeConfig
from rufus_serve.errors import ConfigError
from rufus_serve.protocol.specs import SPEC_VARIABLE, LeaderSpec


def read_spec() -> LeaderSpec:
    """The `LeaderSpec` that `RUFUS_LEADER_SPEC` names.

    Raises:
        ConfigError: the variable is unset or the file cannot be read as a spec.
    """
    path = os.environ.get(SPEC_VARIABLE, "")
    if not path:
        raise ConfigError(f"{SPEC_VARIABLE} is not set; start the leader by `rufus-serve serve`")
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=LeaderSpec)
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{SPEC_VARIABLE}={path} cannot be read: {error}") from error


def config_of(spec: LeaderSpec) -> ServeConfig:
    """The configuration inside `spec`.

    Raises:
        ConfigError: it does not fit this version's schema.
    """
    try:
        return ServeConfig.model_validate(spec.config)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"the leader's configuration is wrong at {where}: {first['msg']}") from (
            error
        )
