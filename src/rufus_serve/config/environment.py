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

_REFUSED = {
    "VLLM_API_KEY": "it would guard some routes only; name an api_key_file",
    "VLLM_SERVER_DEV_MODE": "it opens routes that run code in the server",
    "VLLM_ENABLE_RESPONSES_API_STORE": "its store has no bound and is shared by all keys",
    "VLLM_ENABLE_COHERE_API": "it opens routes outside admission",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "it opens routes that load files",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "it lets pickles through",
    "VLLM_DEBUG_LOG_API_SERVER_RESPONSE": "it writes what clients are answered to the log",
    "VLLM_REQUEST_BODY_LOG_LEVEL": "it writes what clients ask to the log",
    "VLLM_LORA_RESOLVER_CACHE_DIR": "requests would load files",
    "VLLM_LORA_RESOLVER_HF_REPO_LIST": "requests would load files",
    "VLLM_MODEL_REDIRECT_PATH": "it names another model; the setting `model` decides",
    "VLLM_SKIP_MODEL_NAME_VALIDATION": "keys are limited to models by name",
    "VLLM_DISABLE_REQUEST_ID_RANDOMIZATION": "clients could name each other's requests",
    "VLLM_KEEP_ALIVE_ON_ENGINE_DEATH": "the supervisor restarts a dead engine",
    "VLLM_USE_RUST_FRONTEND": "its routes do not pass the gateway",
    "VLLM_LOGGING_CONFIG_PATH": "it imports what the file names",
    "SAGEMAKER_MODEL_PATH": "it names code to execute",
}
"""Variables of vLLM that open or guard something, and why they have no place here."""

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


def refused(environ: Mapping[str, str]) -> list[str]:
    """A line for each variable that would open or guard something behind the settings' back."""
    return [
        f"the environment variable {name} is not allowed: {why}; unset it"
        for name, why in _REFUSED.items()
        if environ.get(name, "").strip().lower() not in ("", "0", "false")
    ]
