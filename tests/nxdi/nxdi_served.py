"""A server whose followers run NxD Inference, in an environment of their own."""

import json
import os
from contextlib import contextmanager

import pytest
from tests.e2e.server import Server

PYTHON = os.environ.get("NXDI_PYTHON", "")
"""The followers' interpreter."""
marks = [
    pytest.mark.timeout(400),
    pytest.mark.skipif(not PYTHON, reason="no NXDI_PYTHON: make test-nxdi SOURCES=..."),
]


@contextmanager
def serving(folder, work, *, neuron, **settings):
    """A ready server of `folder`, which ends well; `work` is a folder of its own."""
    settings |= {
        "runtime": "neuron", "dtype": "float32",
        "neuron": {"mode": "nxdi-cpu", "cores_per_node": 1, **neuron},
        "cluster": {"kind": "local", "python": PYTHON},
    }  # fmt: skip
    path = work / "settings.yaml"
    path.write_text(json.dumps(settings))
    server = Server(folder, f"--config={path}")
    try:
        server.wait_ready(deadline_s=300)
        yield server
        assert server.stop() == 0
    finally:
        server.remove()


def greedy(server, tokens, count):
    """As `Server.greedy`, but with time for a group that is started anew."""
    body = {
        "model": server.name, "prompt": tokens, "temperature": 0, "max_tokens": count,
        "ignore_eos": True, "return_token_ids": True,
    }  # fmt: skip
    status, answer = server.post("/v1/completions", body, timeout_s=300)
    assert status == 200, answer
    return answer["choices"][0]["token_ids"]
