"""What we keep vLLM from doing, against vLLM itself: each guard must still meet what it guards."""

import asyncio
import itertools
import json
import os
import string
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.contract import leader_vllm  # noqa: F401 - before anything of vLLM's

from rufus_serve.config import environment

# isort: split
import fastapi
import vllm.envs
import xgrammar
from model_hosting_container_standards import sagemaker
from vllm.entrypoints.launchers import app as vllm_app
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.structured_output.backend_xgrammar import XgrammarBackend

from rufus_serve.leader.api import vllm_compat
from rufus_serve.leader.api.engine_guard import guard
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


@pytest.mark.parametrize(
    ("num_best", "has_prompt_logprobs", "refused"),
    [(None, False, ""), (0, True, ""), (1000, True, ""), (0, False, "compiled for a device"),
     (-1, True, "from 0 to 1000"), (1001, True, "from 0 to 1000")],
)  # fmt: skip
def test_prompt_logprobs_are_refused_where_followers_or_memory_have_none(
    num_best: int | None, has_prompt_logprobs: bool, refused: str
) -> None:
    async def generate(*_: object, **__: object) -> AsyncIterator[object]:
        yield SimpleNamespace(prompt_token_ids=[1], outputs=[], finished=True, metrics=None)

    engine = SimpleNamespace(generate=generate)
    guard(engine, None, prioritized=False, has_prompt_logprobs=has_prompt_logprobs)
    params = SamplingParams(prompt_logprobs=num_best)

    async def ask() -> int:
        return len([each async for each in engine.generate("x", params, "a")])

    if refused:
        with pytest.raises(VLLMValidationError, match=refused) as error:
            asyncio.run(ask())
        assert error.value.parameter == "prompt_logprobs"
    else:
        assert asyncio.run(ask()) == 1


@pytest.mark.parametrize(
    ("fields", "refused"),
    [
        ({"temperature": 0.0, "seed": 3, "stop": ["."], "max_tokens": 5, "top_p": 0.5}, ""),
        ({}, "temperature"),
        ({"temperature": 0.0, "presence_penalty": 1.0}, "presence_penalty"),
        ({"temperature": 0.0, "frequency_penalty": 1.0}, "frequency_penalty"),
        ({"temperature": 0.0, "repetition_penalty": 1.2}, "repetition_penalty"),
        ({"temperature": 0.0, "min_tokens": 2}, "min_tokens"),
        ({"temperature": 0.0, "logit_bias": {5: 1.0}}, "logit_bias"),
        ({"temperature": 0.0, "allowed_token_ids": [5]}, "allowed_token_ids"),
        ({"temperature": 0.0, "bad_words": ["no"]}, "bad_words"),
        ({"temperature": 0.0, "logprobs": 1}, "logprobs"),
        ({"temperature": 0.0, "prompt_logprobs": 1}, "prompt_logprobs"),
        (
            {"temperature": 0.0, "structured_outputs": StructuredOutputsParams(regex="a")},
            "structured_outputs",
        ),
    ],
)
def test_what_needs_logits_is_refused_where_followers_choose_tokens(
    fields: dict[str, Any], refused: str
) -> None:
    async def generate(*_: object, **__: object) -> AsyncIterator[object]:
        yield SimpleNamespace(prompt_token_ids=[1], outputs=[], finished=True, metrics=None)

    engine = SimpleNamespace(generate=generate)
    guard(engine, None, prioritized=False, has_prompt_logprobs=False, chooses_tokens=True)
    params = SamplingParams(**fields)

    async def ask() -> int:
        return len([each async for each in engine.generate("x", params, "a")])

    if refused:
        with pytest.raises(VLLMValidationError, match=f"{refused}.* not supported") as error:
            asyncio.run(ask())
        assert error.value.parameter == refused
    else:
        assert asyncio.run(ask()) == 1
