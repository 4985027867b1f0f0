import json

import pytest
from tests.unit.cli.test_plan_command import LLAMA_8B

from rufus_serve.cli import plan_traffic
from rufus_serve.cli.main import main
from rufus_serve.plan.traffic import sizing

LOAD = ["--traffic", "--rate", "60", "--input-tokens", "100:300", "--output-tokens", "20"]
SHAPE = ["--max-model-len", "2048", "--max-num-seqs", "8", "--nodes", "1"]
STEPS = {
    "batching": {"max_num_seqs": 8, "largest_prefill": 512, "prefill_tokens_per_step": 512,
                 "num_blocks": 512},
    "prefill": [{"tokens": 64, "ms": 20}, {"tokens": 512, "ms": 160}],
    "decode": [{"rows": 1, "context": 128, "ms": 10}, {"rows": 8, "context": 128, "ms": 18}],
    "front_ms": 5,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _few_requests(monkeypatch):
    monkeypatch.setattr(sizing, "_LEAST_REQUESTS", 300)


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return str(tmp_path)


@pytest.fixture
def steps(tmp_path):
    path = tmp_path / "steps.json"
    path.write_text(json.dumps(STEPS))
    return ["--step-times", str(path), "--recover-s", "5"]


def planned(capsys, *words) -> dict:
    assert main(["plan", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_load_gets_groups_a_price_and_what_a_loss_costs(model, capsys):
    assert main(["plan", model, *LOAD, *SHAPE]) == 0
    shown = capsys.readouterr().out
    assert "60.00 requests/s of 200 prompt and 20 output tokens on average" in shown
    assert "groups of 1 node, batch 8: $" in shown
    assert "on demand, us-east-1" in shown
    assert "a lost node takes 1 of" in shown
    assert "to keep the SLO meanwhile:" in shown
    assert "never run on a device" in shown


def test_json_holds_the_same_and_the_settings(model, capsys):
    found = planned(capsys, model, *LOAD, *SHAPE, "--price", "10")
    assert found["keeps_slo"]
    assert found["usd_per_hour"] == 10 * found["nodes"]
    assert found["settings"]["groups"] == found["groups"] == found["groups_with_spare"] - 1
    assert found["shapes"][0]["measures"]["ttft_ms"]["p99"] <= 1000
    assert 0 < found["loss"]["tokens_lost_share"] <= 1 / found["groups"] + 0.1


def test_tokens_a_minute_count_prompts_and_outputs(model, capsys):
    words = ["--traffic", "--tokens-per-min", "792000", *LOAD[3:]]
    found = planned(capsys, model, *words, *SHAPE, "--groups", "4")
    assert found["demand"]["requests_per_s"] == pytest.approx(60)


def test_measured_step_times_stand_in_for_the_planners(model, steps, capsys):
    found = planned(
        capsys,
        model,
        "--traffic",
        "--rate",
        "20",
        *LOAD[3:],
        *steps,
        "--price",
        "1",
        "--slo",
        "ttft:800",
    )
    assert found["settings"] is None
    assert found["groups"] >= 3
    assert found["loss"]["recover_s"] == 5


def test_an_unknown_price_is_asked_for(model, capsys):
    shape = ["--instance", "trn2.48xlarge", *SHAPE, "--groups", "2"]
    assert main(["plan", model, *LOAD, *shape]) == 0
    assert "no price of trn2.48xlarge is known; give --price" in capsys.readouterr().out


def test_one_group_stops_with_its_node(model, capsys):
    words = ["--traffic", "--rate", "0.5", *SHAPE]
    assert main(["plan", model, *words]) == 0
    assert "a lost node stops everything for" in capsys.readouterr().out


def test_a_trace_is_simulated_as_it_is(model, tmp_path, capsys):
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(
        json.dumps({"prompt": list(range(50)), "max_tokens": 10, "at": 0.2 * index}) + "\n"
        for index in range(50)
    ))  # fmt: skip
    found = planned(capsys, model, "--traffic", "--trace", str(path), *SHAPE)
    assert found["demand"]["requests_per_s"] == pytest.approx(5)
    assert found["shapes"][0]["measures"]["num_requests"] == 50


def test_texts_of_a_trace_count_four_characters_a_token(model, tmp_path, capsys):
    path = tmp_path / "trace.jsonl"
    lines = [{"prompt": "x" * 400}, {"messages": [{"role": "user", "content": "y" * 200}]}]
    path.write_text("\n".join(map(json.dumps, lines)))
    words = ["--trace", str(path), "--rate", "1", "--output-tokens", "7"]
    found = planned(capsys, model, "--traffic", *words, *SHAPE)
    assert found["demand"]["mean_prompt_tokens"] == 75
    assert found["demand"]["mean_output_tokens"] == 7


def test_too_few_groups_end_with_3(model, capsys):
    assert main(["plan", model, *LOAD, *SHAPE, "--groups", "1"]) == 3
    assert "1 group does not keep the SLO in any shape" in capsys.readouterr().out


def test_an_impossible_slo_ends_with_3_and_the_reason(model, capsys):
    assert main(["plan", model, *LOAD, *SHAPE, "--slo", "tpot:1"]) == 3
    assert "a decode takes" in capsys.readouterr().err


def test_a_picture_is_drawn(model, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "curve.png"
    assert main(["plan", model, *LOAD, *SHAPE, "--plot", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_simpy_the_extra_is_named(model, monkeypatch, capsys):
    monkeypatch.setattr(plan_traffic, "find_spec", lambda _: None)
    assert main(["plan", model, *LOAD]) == 2
    assert "pip install 'rufus-serve[traffic]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rate", "3"], "--rate needs --traffic"),
        (["--traffic"], "needs --rate, --tokens-per-min or --trace"),
        (["--traffic", "--rate", "0"], "--rate must be above 0"),
        (["--traffic", "--rate", "nan"], "--rate must be above 0"),
        (["--traffic", "--rate", "1", "--tokens-per-min", "9"], "exclude each other"),
        (["--traffic", "--rate", "1", "--input-tokens", "x"], "lengths must be like"),
        (["--traffic", "--rate", "1", "--input-tokens", "9000"], "--max-model-len"),
        (["--traffic", "--rate", "1", "--slo", "e2e:9"], "ttft:MS and tpot:MS"),
        (["--traffic", "--rate", "1", "--slo", "speed:9"], "an SLO is one of"),
        (["--traffic", "--rate", "1", "--slo", "ttft:0"], "above 0"),
        (["--traffic", "--rate", "1", "--groups", "0"], "--groups must be above 0"),
        (["--traffic", "--rate", "1", "--price", "-1"], "--price must be 0 or more"),
        (["--traffic", "--rate", "1", "--plot", "a.svg"], "name a .png file"),
        (["--traffic", "--rate", "1", "--step-times", "/none"], "cannot be read"),
        (["--traffic", "--trace", "/none"], "cannot be read"),
    ],
)
def test_bad_input_ends_with_2_and_says_why(model, words, message, capsys):
    assert main(["plan", model, *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words", "message"),
    [
        ({"prompt": [1]}, [], "give `at` in every line, or --rate"),
        ({"prompt": [1] * 3000}, ["--rate", "1"], "does not fit max_model_len 2048"),
        ({"prompt": [1]}, ["--tokens-per-min", "1"], "has its own prompts"),
        ({"prompt": [1]}, ["--rate", "1", "--output-tokens", "1:2"], "must be one number"),
    ],
)
def test_a_trace_that_says_too_little_is_refused(model, tmp_path, line, words, message, capsys):
    path = tmp_path / "trace.jsonl"
    path.write_text((json.dumps(line) + "\n") * 3)
    assert main(["plan", model, "--traffic", "--trace", str(path), *words, *SHAPE]) == 2
    assert message in capsys.readouterr().err


def test_measured_times_need_a_time_to_recover(model, steps, capsys):
    assert main(["plan", model, *LOAD, *steps[:2]]) == 2
    assert "--step-times needs --recover-s" in capsys.readouterr().err
