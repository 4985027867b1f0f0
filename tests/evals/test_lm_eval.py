"""lm-evaluation-harness against `/v1/completions` gets the scores of transformers itself."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.e2e.models import reference_logprobs
from tests.e2e.server import DEMO_MODEL, Server, serving

TASKS = Path(__file__).parent / "tasks"
PYTHON = os.environ.get("EVALS_PYTHON", sys.executable)
"""Of the environment that has the harness."""
ATOL_OF_TOKEN = 1e-3
MODES = {"token ids": "num_concurrent=4", "texts": "tokenized_requests=False", "lists": ""}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    flags = ("--nodes=2", "--dtype=float32", "--max-model-len=1024", "--cluster.kind=local")
    with serving(DEMO_MODEL, *flags) as found:
        yield found


def evaluate(server: Server, options: str, batch_size: int, folder: Path) -> dict[str, Any]:
    """The harness's results, and its samples by task."""
    tasks = folder / "tasks"
    shutil.copytree(TASKS, tasks)
    arguments = f"model={server.name},base_url={server.url}/v1/completions,tokenizer={DEMO_MODEL}"
    command = [
        PYTHON, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args",
        ",".join(filter(None, (arguments, "max_length=1024", options))), "--tasks",
        "capitals,tales", "--include_path", str(tasks), "--batch_size", str(batch_size),
        "--log_samples", "--output_path", str(folder / "out"),
    ]  # fmt: skip
    offline = {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=tasks, env=os.environ | offline, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    (results,) = (folder / "out").rglob("results_*.json")
    found: dict[str, Any] = json.loads(results.read_text())["results"]
    for path in (folder / "out").rglob("samples_*.jsonl"):
        task = path.name.removeprefix("samples_").split("_")[0]
        found[task]["samples"] = [json.loads(line) for line in path.read_text().splitlines()]
    return found


def loglikelihood(context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """As transformers in float32 says it, and whether greedy decoding would have written it."""
    rows = reference_logprobs(DEMO_MODEL, [*context, *continuation])[len(context) - 1 : -1]
    total = sum(float(row[token]) for row, token in zip(rows, continuation, strict=True))
    return total, [int(row.argmax()) for row in rows] == continuation


def assert_near(found: float, expected: float, num_tokens: int) -> None:
    assert found == pytest.approx(expected, abs=ATOL_OF_TOKEN * num_tokens)


def check_choices(task: dict[str, Any], encode: Any) -> None:
    """Each ending's log-likelihood, and the accuracies that follow from transformers'."""
    num_right = num_right_by_length = 0
    for sample in task["samples"]:
        scores = []
        for asked, ((found, is_greedy),) in zip(
            sample["arguments"].values(), sample["resps"], strict=True
        ):
            context = encode(asked["arg_0"])
            continuation = encode(asked["arg_0"] + asked["arg_1"])[len(context) :]
            expected, is_best = loglikelihood(context, continuation)
            assert_near(float(found), expected, len(continuation))
            assert (is_greedy in (True, "True")) == is_best
            scores.append((expected, expected / len(asked["arg_1"].strip())))
        right = sample["doc"]["answer"]
        num_right += max(range(3), key=lambda at: scores[at][0]) == right
        num_right_by_length += max(range(3), key=lambda at: scores[at][1]) == right
    total = len(task["samples"])
    assert task["acc,none"] == pytest.approx(num_right / total)
    assert task["acc_norm,none"] == pytest.approx(num_right_by_length / total)


def check_texts(task: dict[str, Any], encode: Any, first: int) -> None:
    """Each text's log-likelihood behind the beginning of a text, and the bits of a byte."""
    total = size = 0.0
    for sample in task["samples"]:
        text = sample["doc"]["text"]
        expected, _ = loglikelihood([first], encode(text))
        assert_near(float(sample["resps"][0][0]), expected, len(encode(text)))
        total, size = total + expected, size + len(text.encode())
    bits = -total / size / 0.6931471805599453
    assert task["bits_per_byte,none"] == pytest.approx(bits, rel=1e-3)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mode", MODES)
def test_scores_are_those_of_transformers(server: Server, mode: str, tmp_path: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(DEMO_MODEL)

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    found = evaluate(server, MODES[mode], 4 if mode == "lists" else 1, tmp_path)
    check_choices(found["capitals"], encode)
    check_texts(found["tales"], encode, tokenizer.bos_token_id)
