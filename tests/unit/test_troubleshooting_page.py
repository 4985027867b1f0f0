import re
from pathlib import Path

from tests.unit.test_errors import every_class

from rufus_serve import errors

PAGE = Path(__file__).parents[2] / "docs" / "troubleshooting.md"


def entries() -> dict[str, str]:
    _, *parts = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    return dict(part.split("\n", 1) for part in parts)


def test_every_class_of_errors_has_an_entry_with_its_exit_code() -> None:
    ours = [kind for kind in every_class(errors.RufusError) if kind.__module__ == errors.__name__]
    found = entries()
    assert found.keys() == {kind.__name__ for kind in ours}
    for kind in ours:
        assert f"Exit code {kind.exit_code}" in found[kind.__name__]


def test_settings_that_entries_name_exist() -> None:
    reference = (PAGE.parent / "configuration.md").read_text()
    sections = r"timeouts|recovery|cluster|artifacts|batch"
    for name in re.findall(rf"`((?:{sections})\.\w+)", PAGE.read_text()):
        assert f"| `{name}` |" in reference, name
