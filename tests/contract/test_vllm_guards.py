"""What we keep vLLM from doing, against vLLM itself: each guard must still meet what it guards."""

from pathlib import Path

import pytest
from tests.contract import leader_vllm  # noqa: F401 - before anything of vLLM's

from rufus_serve.config import environment

# isort: split
import fastapi
import vllm.envs
from model_hosting_container_standards import sagemaker
from vllm.entrypoints.launchers import app as vllm_app

from rufus_serve.leader.api import vllm_compat

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
