"""Makes the chart's values.schema.json and what its templates know of the settings.

Usage: python deploy/helm/generate_schema.py [--check]

`--check` writes nothing and exits 1 if a file is out of date.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from rufus_serve.artifacts.inputs import ARTIFACT_SETTINGS
from rufus_serve.config import ServeConfig
from rufus_serve.config.settings import all_settings

HERE = Path(__file__).resolve().parent
CHART = HERE / "rufus-serve"
OWNED = (
    "host",
    "api_key_file",
    "allow_anonymous",
    "artifacts.cache",
    "http.tls_certificate",
    "http.tls_key",
    # Kubelet's probes have no certificate to show.
    "http.tls_client_ca",
    "cluster.kind",
    "cluster.ray_address",
    "cluster.python",
    "cluster.token_file",
    "cluster.follower_on_leader_host",
)
"""Settings that the chart's templates write themselves."""
PORTS = (
    "port",
    "cluster.ray_port",
    "cluster.control_port",
    "cluster.step_port",
    "cluster.rendezvous_port",
)
"""Settings that firewalls and policies must know, so that 0 for a free port is refused."""


def main(arguments: list[str]) -> int:
    """Write or compare the files; the exit code."""
    wanted = {
        CHART / "values.schema.json": _json(values_schema()),
        CHART / "files" / "config-defaults.json": _json(config_defaults()),
        CHART / "files" / "artifact-settings.json": _json(ARTIFACT_SETTINGS),
    }
    if "--check" not in arguments:
        for path, text in wanted.items():
            path.write_text(text)
        return 0
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        print(f"{path} is out of date; run deploy/helm/generate_schema.py", file=sys.stderr)
    return 1 if stale else 0


def values_schema() -> dict[str, Any]:
    """The schema of all values, closed at every level."""
    schema: dict[str, Any] = yaml.safe_load((HERE / "values-schema.yaml").read_text())
    schema["properties"]["config"] = config_schema()
    _close(schema)
    return schema


def config_schema() -> dict[str, Any]:
    """The schema of `config`: `ServeConfig` less what the chart owns."""
    exported = ServeConfig.model_json_schema()
    schema: dict[str, Any] = _inline(exported, exported.pop("$defs"))
    for key in OWNED:
        holder, name = _holder(schema, key)
        del holder[name]
    for key in PORTS:
        holder, name = _holder(schema, key)
        holder[name]["minimum"] = 1
    return schema


def config_defaults() -> dict[str, Any]:
    """Defaults of the settings that have one, as a tree, less what the chart owns."""
    tree: dict[str, Any] = {}
    for setting in all_settings().values():
        if setting.key in OWNED or setting.required or setting.default is None:
            continue
        section, _, name = setting.key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = setting.default
    return tree


def _holder(schema: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    *sections, name = key.split(".")
    for section in sections:
        schema = schema["properties"][section]
    return schema["properties"], name


def _inline(node: Any, definitions: dict[str, Any]) -> Any:
    """`node` with references replaced, and without titles and defaults.

    Draft 7, which Helm 3 knows, ignores what stands beside a reference.
    """
    if isinstance(node, list):
        return [_inline(each, definitions) for each in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        node = {**target, **{name: value for name, value in node.items() if name != "$ref"}}
    return {
        name: {key: _inline(each, definitions) for key, each in value.items()}
        if name == "properties"
        else _inline(value, definitions)
        for name, value in node.items()
        if name not in ("title", "default")
    }


def _close(node: Any) -> None:
    """Refuse unknown keys wherever `properties` lists the known ones."""
    if isinstance(node, list):
        for each in node:
            _close(each)
    elif isinstance(node, dict):
        if isinstance(node.get("properties"), dict) and "$ref" not in node:
            node.setdefault("type", "object")
            node.setdefault("additionalProperties", False)
        for each in node.values():
            _close(each)


def _json(tree: dict[str, Any]) -> str:
    return json.dumps(tree, indent=1) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
