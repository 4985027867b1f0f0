import subprocess
import sys

import pytest

from rufus_serve.config import ServeConfig
from rufus_serve.config.settings import all_settings, nearest, nearest_key, sections


def test_every_setting_and_section_has_help():
    assert [key for key, setting in all_settings().items() if not setting.help] == []
    assert [name for name, about in sections().items() if not about] == []


def test_flags_and_variables_are_unique():
    settings = all_settings().values()
    assert len({each.flag for each in settings}) == len(settings)
    assert len({each.variable for each in settings}) == len(settings)


def test_a_nested_setting_has_a_dotted_flag_and_a_variable_with_two_underscores():
    setting = all_settings()["cluster.ray_port"]
    assert (setting.flag, setting.variable) == ("--cluster.ray-port", "RUFUS_CLUSTER__RAY_PORT")
    assert setting.type_name == "int >= 0, <= 65535"


@pytest.mark.parametrize(
    ("typo", "meant"),
    [("nodez", "nodes"), ("cluster.knd", "cluster.kind"), ("heartbeat", "timeouts.heartbeat_s")],
)
def test_a_misspelt_key_finds_its_like(typo: str, meant: str):
    assert nearest_key(typo) == meant


def test_an_unlike_word_finds_nothing():
    assert nearest("zzqqxx", ["nodes", "port"]) == ""
    assert nearest("nodes", []) == ""


def test_the_configuration_imports_no_framework():
    code = (
        "import sys, rufus_serve.config\n"
        "print([m for m in ('torch', 'ray', 'vllm', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("settings", "deadline_s"),
    [
        ({}, 600.0),
        ({"recovery": {"deadline_s": 5}}, 5.0),
        ({"runtime": "neuron"}, 60.0 + 1800.0 + 1800.0),
        ({"runtime": "neuron", "recovery": {"deadline_s": 5000}}, 5000.0),
    ],
)
def test_a_recovery_may_take_what_the_runtime_needs(settings, deadline_s):
    assert ServeConfig(model="m", **settings).recovery_deadline_s == deadline_s


def test_followers_are_told_nothing_of_vllms_options_and_keep_their_identity():
    config = ServeConfig(
        model="m", vllm_args={"seed": 5, "otlp_traces_endpoint": "http://user:pw@h"}
    )
    told = ServeConfig.model_validate(config.for_followers())
    assert "user:pw" not in told.model_dump_json()
    assert told.group_hash() == config.group_hash()
