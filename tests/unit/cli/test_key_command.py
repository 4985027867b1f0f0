from pathlib import Path

import pytest

from rufus_serve.cli.main import main
from rufus_serve.config.keys import fingerprint, read_keys
from rufus_serve.errors import ConfigError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_a_key_is_printed_once_and_kept_as_its_hash(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--scope", "infer", "--requests-per-minute", "60", "--model", "m", "--days", "1"]
    assert main(["key", "add", "alice", "--file", str(file), *flags]) == 0
    secret = capsys.readouterr().out.strip()
    assert secret not in file.read_text()
    (key,) = read_keys(file)
    assert (key.id, key.sha256) == ("alice", fingerprint(secret))
    assert (key.scopes, key.models, key.requests_per_minute) == (("infer",), ("m",), 60)
    assert file.stat().st_mode & 0o777 == 0o600


def test_keys_are_listed_without_hashes_and_revoked_by_name(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("alice", "bob"):
        main(["key", "add", name, "--file", str(file)])
    assert main(["key", "revoke", "alice", "--file", str(file)]) == 0
    capsys.readouterr()
    assert main(["key", "list", "--file", str(file)]) == 0
    assert capsys.readouterr().out == "bob: scopes infer\n"


def test_a_rotated_key_keeps_its_owner_and_the_one_before_for_a_while(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["key", "add", "alice", "--file", str(file), "--max-n", "2"])
    first = capsys.readouterr().out.strip()
    assert main(["key", "rotate", "alice", "--file", str(file), "--keep-hours", "1"]) == 0
    second = capsys.readouterr().out.strip()
    (key,) = read_keys(file)
    assert key.hashes == (fingerprint(second), fingerprint(first))
    assert (key.id, key.max_n) == ("alice", 2)
    main(["key", "list", "--file", str(file)])
    assert fingerprint(first) not in capsys.readouterr().out
    main(["key", "rotate", "alice", "--file", str(file), "--keep-hours", "0"])
    third = capsys.readouterr().out.strip()
    assert read_keys(file)[0].hashes == (fingerprint(third),)


def test_the_last_key_may_be_revoked_and_another_added(file: Path) -> None:
    main(["key", "add", "alice", "--file", str(file)])
    assert main(["key", "revoke", "alice", "--file", str(file)]) == 0
    with pytest.raises(ConfigError, match="no key"):
        read_keys(file)
    assert main(["key", "add", "bob", "--file", str(file)]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["add", "a b"], "id: "),
        (["add", "alice"], "rotate or revoke it"),
        (["revoke", "carol"], "it has alice"),
        (["add", "x", "--priority", "1000"], "priority"),
    ],
)
def test_what_cannot_be_done_says_why(
    file: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    main(["key", "add", "alice", "--file", str(file)])
    assert main(["key", *arguments, "--file", str(file)]) == ConfigError.exit_code
    assert said in capsys.readouterr().err


def test_a_file_that_others_may_read_is_refused(file: Path) -> None:
    main(["key", "add", "alice", "--file", str(file)])
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod"):
        read_keys(file)
