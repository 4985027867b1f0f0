"""Reads settings from `RUFUS_*` variables."""

import re
from collections.abc import Mapping

from rufus_serve.config.settings import VARIABLE_PREFIX

NON_SETTINGS = {
    "RUFUS_CONFIG": "settings file, when --config is not given",
    "RUFUS_LEADER_SPEC": "file by which the supervisor tells its leader process what to do",
    "RUFUS_LEADER_FAILURE": "file in which a leader process leaves its first error",
    "RUFUS_NODE_ADDRESS": "address by which `rufus-serve follower` offers its host",
    "RUFUS_NODE_TOKEN_FILE": "token file of `rufus-serve follower`",
    "RUFUS_FAULTS": "faults to inject, for tests",
}
"""Variables with the prefix that are not settings, and what they are for."""

_SERVICE_LINK = re.compile(
    r"RUFUS_(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT_\d+_(TCP|UDP|SCTP)(_.*)?)"
)
"""Kubernetes describes a Service named `rufus…` to every pod in variables of these names."""


def read(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Dotted keys, known or not, with the variable's name and text.

    `RUFUS_CLUSTER__KIND` is `cluster.kind`. Variables that are no settings are left out.
    """
    return {
        _key(name): (name, text)
        for name, text in environ.items()
        if name.startswith(VARIABLE_PREFIX) and not _is_foreign(name, text)
    }


def _key(name: str) -> str:
    return name.removeprefix(VARIABLE_PREFIX).replace("__", ".").lower()


def _is_foreign(name: str, text: str) -> bool:
    if name in NON_SETTINGS or _SERVICE_LINK.fullmatch(name):
        return True
    return name.endswith("_PORT") and re.match(r"(tcp|udp|sctp)://", text) is not None
