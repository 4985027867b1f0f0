"""The Terraform files: in form, valid by the AWS provider's schema, and in step with eksctl's."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.chart import ROOT

FOLDER = ROOT / "deploy" / "eks" / "terraform"
PLUGINS = os.environ.get("TERRAFORM_PLUGIN_DIR", "")
"""Folder of providers, for where Terraform's registry is out of reach."""


def terraform(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    program = shutil.which("terraform")
    if program is None:
        # In no package registry.
        pytest.skip("terraform is not installed here")
    environ = {**os.environ, "TF_IN_AUTOMATION": "1", "CHECKPOINT_DISABLE": "1"}
    environ.pop("TF_CLI_CONFIG_FILE", None)
    return subprocess.run(
        [program, f"-chdir={folder}", *words],
        capture_output=True, text=True, check=False, env=environ, timeout=240,
    )  # fmt: skip


def test_files_are_in_terraforms_form():
    done = terraform(FOLDER, "fmt", "-check", "-diff")
    assert done.returncode == 0, done.stdout


@pytest.mark.timeout(300)
def test_files_are_valid_by_the_providers_schema(tmp_path):
    copy = shutil.copytree(FOLDER, tmp_path / "terraform")
    start = ["init", "-backend=false", "-input=false", "-no-color"]
    done = terraform(copy, *start, *([f"-plugin-dir={PLUGINS}"] if PLUGINS else []))
    if done.returncode != 0:
        pytest.skip(f"the AWS provider cannot be had here: {done.stderr[-300:]}")
    done = terraform(copy, "validate", "-no-color")
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_ways_make_the_same_nodes():
    nodes = (FOLDER / "nodes.tf").read_text()
    (cluster,) = yaml.safe_load_all((ROOT / "deploy/eks/cluster.yaml").read_text())
    for group in cluster["managedNodeGroups"]:
        assert f'node_group_name = "{group["name"]}"' in nodes
    (trn1,) = [each for each in cluster["managedNodeGroups"] if each["name"] == "trn1"]
    assert f'instance_type = "{trn1["instanceType"]}"' in nodes
    assert trn1["taints"][0]["key"] in nodes
    assert "LimitMEMLOCK=infinity" in nodes
    assert cluster["metadata"]["version"] in (FOLDER / "cluster.tf").read_text()
    variables = (FOLDER / "variables.tf").read_text()
    (compiling,) = [each for each in cluster["managedNodeGroups"] if each["name"] == "compile"]
    assert compiling["instanceType"] in variables
    assert re.search(r'"rufus-serve/nodes"\s+= "compile"', nodes)
