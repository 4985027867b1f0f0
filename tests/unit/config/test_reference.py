from pathlib import Path

from rufus_serve.config import ServeConfig, resolve
from rufus_serve.config.reference import markdown, resolved_rows
from rufus_serve.config.settings import all_settings

REFERENCE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_reference_in_docs_is_up_to_date():
    assert REFERENCE.read_text() == markdown(), "run `make docs`"


def test_the_reference_lists_every_setting_once():
    text = markdown()
    assert [key for key in all_settings() if text.count(f"| `{key}` |") != 1] == []


def test_shown_values_are_plain_data():
    resolved = resolve(file=None, environ={}, flags={"model": "m", "cluster.token_file": "t"})
    rows = {row["key"]: row for row in resolved_rows(resolved)}
    assert rows["cluster.token_file"] == {
        "key": "cluster.token_file",
        "value": "t",
        "origin": "--cluster.token-file",
    }
    assert rows["buckets.prefill"]["value"] == [64, 128, 256, 512]


def test_the_schema_of_a_settings_file_is_closed_at_every_level():
    schema = ServeConfig.model_json_schema()
    objects = [schema, *schema["$defs"].values()]
    assert all(each["additionalProperties"] is False for each in objects)
