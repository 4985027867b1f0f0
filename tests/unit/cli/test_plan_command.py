import json

import pytest

from rufus_serve.cli.main import main

LLAMA_8B = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4096,
    "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336,
    "vocab_size": 128256, "max_position_embeddings": 131072,
}  # fmt: skip


@pytest.fixture
def model(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    return str(tmp_path)


def test_a_plan_is_printed_with_its_formula(model, capsys):
    assert main(["plan", model]) == 0
    shown = capsys.readouterr().out
    assert "8.03 B parameters, bfloat16, on 1 x trn1.32xlarge: fits" in shown
    assert "decode = weights/bandwidth" in shown
    assert "recommendation: One node holds it." in shown


def test_a_draft_model_is_counted_and_told(model, capsys):
    assert main(["plan", model, "--draft-model", model]) == 0
    shown = capsys.readouterr().out
    assert "of the weights, and" in shown
    assert "drafts are not in these times" in shown
    assert "method: fused" in shown


def test_json_holds_bytes_and_terms(model, capsys):
    assert main(["plan", model, "--json", "--nodes", "2"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["num_params"] == 8_030_261_248
    memory = plan["memory_per_core_bytes"]
    used = memory["weights"] + memory["kv"] + memory["scratch"]
    assert memory["free"] == memory["hbm"] - used
    assert plan["tensor_parallel"]["kv_replication"] == 8
    assert plan["latency"]["decode"][0]["efa_min_ms"] > 0
    assert plan["advice"][0]["level"] == "recommendation"


def test_published_runs_stand_beside_the_predictions(model, capsys):
    assert main(["plan", model, "--json", "--published"]) == 0
    rows = json.loads(capsys.readouterr().out)["published"]
    assert len(rows) == 15
    assert rows[1]["run"]["tpot_ms"] == 24.5
    assert main(["plan", model, "--published"]) == 0
    shown = capsys.readouterr().out
    assert "24.50" in shown
    assert "P50 above its own P99" in shown


def test_a_model_that_does_not_fit_ends_with_3(model, capsys):
    code = main(["plan", model, "--instance", "trn1.2xlarge", "--max-model-len", "131072"])
    assert code == 3
    assert "DOES NOT FIT" in capsys.readouterr().out


def test_impossible_heads_end_with_2_and_the_equation(model, capsys):
    assert main(["plan", model, "--cores-per-node", "12"]) == 2
    error = capsys.readouterr().err
    assert "12 % 8 = 4" in error
    assert "--cores-per-node 8" in error


def test_a_number_below_one_is_refused(model, capsys):
    assert main(["plan", model, "--nodes", "0"]) == 2
    assert "above 0" in capsys.readouterr().err
