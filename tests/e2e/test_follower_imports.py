"""A follower serves without vLLM, Ray or transformers, in an environment that hides them."""

import sys
from pathlib import Path

import pytest

from tests.e2e.server import serving

_HIDE = """
import os, pathlib, sys

class Hider:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"vllm", "ray", "transformers", "fastapi"}:
            note(f"import {name}")
            raise ModuleNotFoundError(name)

def note(what):
    with (pathlib.Path(__file__).parent / f"imports-{os.getpid()}").open("a") as file:
        print(what, file=file)

if "rufus_serve.follower" in sys.orig_argv:
    note("start")
    sys.meta_path.insert(0, Hider())
"""


@pytest.mark.parametrize("cluster", ["local", "ray"])
def test_followers_serve_where_vllm_ray_and_transformers_cannot_be_imported(
    tiny_model: Path, tmp_path: Path, cluster: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_HIDE)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    flags = ("--nodes=2", f"--cluster.kind={cluster}", f"--cluster.python={python}")
    with serving(tiny_model, *flags) as server:
        assert len(server.greedy([5, 6, 7], 8)) == 8
        pids = {process.pid for process in server.followers()}
        notes = {int(path.name.rpartition("-")[2]): path for path in tmp_path.glob("imports-*")}
        assert pids == set(notes)
        assert {path.read_text() for path in notes.values()} == {"start\n"}
