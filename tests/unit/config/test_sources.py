import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rufus_serve.config import resolve
from rufus_serve.config.settings import all_settings
from rufus_serve.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    file = folder / "settings.yaml"
    file.write_text(text)
    return file


def resolved(file=None, environ=None, flags=None):
    return resolve(file=file, environ=environ or {}, flags={"model": "m", **(flags or {})})


def problem(file=None, environ=None, flags=None) -> str:
    with pytest.raises(ConfigError) as caught:
        resolved(file, environ, flags)
    return str(caught.value)


def test_flags_win_over_variables_over_the_file_over_defaults(tmp_path: Path):
    file = write(tmp_path, "nodes: 2\nport: 1\nmax_num_seqs: 3\n")
    environ = {"RUFUS_PORT": "2", "RUFUS_MAX_NUM_SEQS": "4"}
    config = resolved(file, environ, {"max_num_seqs": "5"}).config
    assert (config.nodes, config.port, config.max_num_seqs, config.block_size) == (2, 2, 5, 32)


def test_every_value_tells_where_it_came_from(tmp_path: Path):
    file = write(tmp_path, "nodes: 2\ncluster:\n  kind: local\n")
    origins = resolved(file, {"RUFUS_TIMEOUTS__JOIN_S": "9"}, {"cpu.threads": "1"}).origins
    assert str(origins["cluster.kind"]) == f"{file}:3"
    assert str(origins["timeouts.join_s"]) == "RUFUS_TIMEOUTS__JOIN_S"
    assert str(origins["cpu.threads"]) == "--cpu.threads"
    assert str(origins["model"]) == "MODEL"
    assert origins["port"].kind == "default"
    assert list(origins) == list(all_settings())


def test_a_section_may_come_from_several_sources(tmp_path: Path):
    file = write(tmp_path, "recovery:\n  max_restarts: 3\n  window_s: 60\n")
    recovery = resolved(file, {"RUFUS_RECOVERY__WINDOW_S": "30"}).config.recovery
    assert (recovery.max_restarts, recovery.window_s) == (3, 30.0)


def test_free_mappings_are_merged_key_by_key(tmp_path: Path):
    file = write(tmp_path, "vllm_args: {seed: 1, enforce_eager: true}\n")
    environ = {"RUFUS_VLLM_ARGS__SEED": "2"}
    got = resolved(file, environ, {"vllm_args": "{tokenizer: t}"})
    assert got.config.vllm_args == {"seed": 2, "enforce_eager": True, "tokenizer": "t"}
    assert str(got.origins["vllm_args"]) == f"{file}:1 + RUFUS_VLLM_ARGS__SEED + --vllm-args"


def test_lists_are_comma_separated_in_variables_and_flags():
    config = resolved(
        environ={"RUFUS_BUCKETS__PREFILL": "64, 128"}, flags={"buckets.context": "[128,256]"}
    ).config
    assert config.buckets.prefill == (64, 128)
    assert config.buckets.context == (128, 256)


def test_an_empty_variable_unsets_an_optional_path(tmp_path: Path):
    file = write(tmp_path, "api_key_file: keys\n")
    assert resolved(file, {"RUFUS_API_KEY_FILE": ""}).config.api_key_file is None


def test_an_empty_file_and_an_empty_section_are_fine(tmp_path: Path):
    assert resolved(write(tmp_path, "")).config.nodes == 1
    assert resolved(write(tmp_path, "cluster:\n")).config.cluster.kind == "ray"


def test_an_unknown_key_names_the_nearest_one_and_its_place(tmp_path: Path):
    file = write(tmp_path, "nodes: 1\nmax_model_length: 3\n")
    assert problem(file) == (
        f"max_model_length: unknown setting ({file}:2); did you mean max_model_len?"
    )


def test_a_key_in_the_wrong_section_is_pointed_to_the_right_one(tmp_path: Path):
    assert "did you mean cluster.kind?" in problem(write(tmp_path, "kind: local\n"))
    assert "did you mean recovery.max_restarts?" in problem(
        write(tmp_path, "limits:\n  max_restarts: 1\n")
    )


def test_an_unknown_variable_names_the_nearest_variable():
    assert problem(environ={"RUFUS_CLUSTER__KINDS": "local"}) == (
        "cluster.kinds: unknown setting (RUFUS_CLUSTER__KINDS); did you mean RUFUS_CLUSTER__KIND?"
    )


def test_an_unlike_key_points_to_the_reference():
    assert "'rufus-serve config reference' lists all" in problem(environ={"RUFUS_ZZZQQ": "1"})


def test_variables_that_are_no_settings_are_left_alone():
    environ = {"RUFUS_LEADER_SPEC": "x", "RUFUS_FAULTS": "{}", "RUFUS_CONFIG": "f", "HOME": "/"}
    assert resolved(environ=environ).config == resolved().config


def test_variables_of_a_kubernetes_service_named_rufus_are_left_alone():
    environ = {
        "RUFUS_PORT": "tcp://10.0.0.1:8000",
        "RUFUS_SERVICE_HOST": "10.0.0.1",
        "RUFUS_SERVE_SERVICE_PORT_HTTP": "8000",
        "RUFUS_SERVE_PORT": "tcp://10.0.0.1:8000",
        "RUFUS_SERVE_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    assert resolved(environ=environ).config.port == 8000


def test_each_wrong_type_is_one_line_with_its_place(tmp_path: Path):
    file = write(tmp_path, "nodes: many\ntimeouts:\n  join_s: -1\nruntime: gpu\n")
    lines = problem(file, {"RUFUS_PORT": "70000"}).splitlines()
    assert lines[0] == "4 settings are wrong:"
    assert any("nodes: " in line and "'many'" in line and f"{file}:1" in line for line in lines)
    assert any("timeouts.join_s: " in line and f"{file}:3" in line for line in lines)
    assert any("runtime: " in line and "'cpu' or 'neuron'" in line for line in lines)
    assert any("port: " in line and "RUFUS_PORT" in line for line in lines)


@pytest.mark.parametrize("text", ["nodes: true\n", "timeouts: {join_s: yes}\n", "host: no\n"])
def test_a_truth_value_is_no_number_and_no_text(tmp_path: Path, text: str):
    assert "must be" in problem(write(tmp_path, text))


@pytest.mark.parametrize("text", ["inf", "nan"])
def test_a_deadline_is_finite(text: str):
    assert "timeouts.join_s" in problem(flags={"timeouts.join_s": text})


def test_a_section_given_as_a_plain_value_is_refused(tmp_path: Path):
    assert "must be a mapping" in problem(write(tmp_path, "cluster: local\n"))
    assert "must be a mapping" in problem(environ={"RUFUS_VLLM_ARGS": "7"})


def test_a_bad_order_of_buckets_is_told_with_its_place():
    message = problem(flags={"buckets.prefill": "128,64"})
    assert (
        message == "buckets: prefill must ascend without repeats, got [128, 64] (--buckets.prefill)"
    )


def test_without_a_model_all_three_ways_to_give_it_are_named():
    with pytest.raises(ConfigError, match=r"MODEL.*'model:'.*RUFUS_MODEL"):
        resolve(file=None, environ={}, flags={})


def test_contradicting_settings_are_told_with_their_places():
    message = problem(
        environ={"RUFUS_MAX_MODEL_LEN": "4096"}, flags={"buckets.context": "128,2048"}
    )
    assert "2048 < max_model_len 4096" in message
    assert "(--buckets.context, RUFUS_MAX_MODEL_LEN)" in message


@given(st.sampled_from(sorted(all_settings())), st.text(max_size=20))
def test_no_text_in_a_variable_gets_past_config_error(key: str, text: str):
    variable = all_settings()[key].variable
    with contextlib.suppress(ConfigError):
        resolve(file=None, environ={"RUFUS_MODEL": "m", variable: text}, flags={})
