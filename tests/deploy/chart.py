"""Renders the chart with real Helm; `python -m tests.deploy.chart` rewrites the golden files."""

import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "rufus-serve"
GOLDEN = Path(__file__).parent / "golden"
TOOLS = Path(os.environ.get("RUFUS_TOOLS", ROOT / ".tools"))
MAJORS = ("3", "4")
SECRETS = ("groupToken.existingSecret=token", "apiKeys.existingSecret=keys")
OVERLAYS = {"spot": CHART / "values-spot.yaml"}
"""Profiles that go on top of another."""
PROFILES = {
    path.stem.removeprefix("values-"): path
    for path in sorted(CHART.glob("values-*.yaml"))
    if path.stem != "values-spot"
} | {name: Path(__file__).parent / f"values-{name}.yaml" for name in ("everything", "router")}


def tool(name: str) -> Path:
    """Where `deploy/helm/get-tools.sh` puts it."""
    return TOOLS / "bin" / name


def template(
    *sets: str, values: Path | list[Path] | None = None, major: str = "4", chart: Path = CHART
) -> "subprocess.CompletedProcess[str]":
    """`helm template` with `values`, the last on top, and `--set` of each of `sets`."""
    command = [str(tool(f"helm{major}")), "template", "demo", str(chart), "--namespace", "models"]
    for file in values if isinstance(values, list) else [values] if values else []:
        command += ["--values", str(file)]
    for each in sets:
        command += ["--set", each]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def render(
    *sets: str, values: Path | list[Path] | None = None, major: str = "4", chart: Path = CHART
) -> list[dict[str, Any]]:
    """Its manifests, by kind and name."""
    done = template(*sets, values=values, major=major, chart=chart)
    assert done.returncode == 0, done.stderr
    documents = [document for document in yaml.safe_load_all(done.stdout) if document]
    return sorted(documents, key=lambda each: (each["kind"], each["metadata"]["name"]))


def one(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The only manifest of this kind."""
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def job(documents: list[dict[str, Any]], component: str) -> dict[str, Any] | None:
    """The Job of a component, if there is one."""
    label = "app.kubernetes.io/component"
    found = [
        each
        for each in documents
        if each["kind"] == "Job"
        and each["spec"]["template"]["metadata"]["labels"][label] == component
    ]
    return found[0] if found else None


def golden_text(profile: str) -> str:
    """What a profile renders to, as it is kept."""
    done = template(*SECRETS, values=PROFILES[profile])
    assert done.returncode == 0, done.stderr
    return done.stdout


if __name__ == "__main__":
    for name in PROFILES:
        (GOLDEN / f"{name}.yaml").write_text(golden_text(name))
