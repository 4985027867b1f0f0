import json

import pytest

from rufus_serve.cli.main import main
from rufus_serve.config.settings import all_settings


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["config", *arguments]) == 0
    return capsys.readouterr().out


def test_show_prints_every_setting_with_value_and_origin(capsys):
    lines = [line.split() for line in output(capsys, "show", "m", "--nodes=3").splitlines()]
    rows = {line[0]: line[1:] for line in lines if line}
    assert set(all_settings()) <= set(rows)
    assert rows["nodes"] == ["3", "--nodes"]
    assert rows["port"] == ["8000", "default"]


def test_show_as_json_is_for_programs(capsys):
    rows = json.loads(output(capsys, "show", "m", "--json", "--buckets.prefill=8"))
    assert rows["buckets.prefill"]["value"] == [8]
    assert rows["buckets.prefill"]["origin"] == "--buckets.prefill"


def test_show_hides_secrets_among_vllms_options(capsys):
    options = ("--vllm-args={hf_token: hf_abc, seed: 3, model_loader_extra_config: {password: p}}",)
    rows = json.loads(output(capsys, "show", "m", "--json", *options))
    assert rows["vllm_args"]["value"] == {
        "hf_token": "(hidden)",
        "seed": 3,
        "model_loader_extra_config": {"password": "(hidden)"},
    }
    assert "hf_abc" not in output(capsys, "show", "m", *options)


def test_export_is_a_json_schema(capsys):
    schema = json.loads(output(capsys, "export"))
    assert schema["required"] == ["model"]
    assert schema["properties"]["nodes"]["maximum"] == 64


def test_reference_is_markdown(capsys):
    assert output(capsys, "reference").startswith("# Configuration\n")
