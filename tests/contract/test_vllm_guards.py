"""What we keep vLLM from doing, against vLLM itself: each guard must still meet what it guards."""

import itertools
import json
import os
import string
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.contract import leader_vllm  # noqa: F401 - before anything of vLLM's

from rufus_serve.config import environment

# isort: split
import fastapi
import vllm.envs
import xgrammar
from model_hosting_container_standards import sagemaker
from vllm.entrypoints.launchers import app as vllm_app
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

from rufus_serve.leader.api import vllm_compat
from rufus_serve.leader.engine.vllm_compat import calm_grammar_compilation

_NOT_IN_VLLMS_LIST = {"SAGEMAKER_MODEL_PATH"}


def test_every_refused_variable_is_one_that_vllm_still_reads() -> None:
    known = set(vllm.envs.environment_variables) | _NOT_IN_VLLMS_LIST
    assert set(environment._REFUSED) <= known


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once the model folder's model.py was executed."""
    mark = tmp_path / "ran"
    code = f"open({str(mark)!r}, 'w').close()\ndef custom_sagemaker_ping_handler(): pass\n"
    (tmp_path / "model.py").write_text(code)
    monkeypatch.setenv("SAGEMAKER_MODEL_PATH", str(tmp_path))
    return mark


def test_code_beside_a_model_is_executed_by_vllm_alone(ran: Path) -> None:
    sagemaker.bootstrap(fastapi.FastAPI())
    assert ran.exists(), "vLLM no longer executes it: the guard can go"


def test_code_beside_a_model_is_not_executed_behind_the_gateway(
    ran: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = vllm_app.sagemaker_standards_bootstrap
    monkeypatch.setattr(vllm_app, "sagemaker_standards_bootstrap", original)
    vllm_compat.skip_sagemaker_handlers()
    vllm_app.sagemaker_standards_bootstrap(fastapi.FastAPI())
    assert not ran.exists()


def test_an_engine_goes_on_while_it_compiles_grammars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(XgrammarBackend, "_create_compiler", None)  # put back afterwards
    structured_outputs = SimpleNamespace()
    calm_grammar_compilation(structured_outputs)
    words = ["".join(each) for each in itertools.product(string.ascii_lowercase, repeat=3)]
    compiler = XgrammarBackend._create_compiler(xgrammar.TokenizerInfo(words))
    names = [f"p{n}" for n in range(50)]
    texts = {name: {"type": "string", "pattern": f"[a-z]{{1,30}}{name}"} for name in names}
    schema = json.dumps({"type": "object", "properties": texts, "required": names})
    executor = structured_outputs.executor
    assert executor.submit(os.getpriority, os.PRIO_PROCESS, 0).result() == 19
    compiling = executor.submit(compiler.compile_json_schema, schema)
    turns = 0
    while not compiling.done():
        time.sleep(0.0005)
        turns += 1
    # With the interpreter's lock held for all of the compiling, there would be one or two.
    assert turns > 10
