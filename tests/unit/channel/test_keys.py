import stat
from pathlib import Path

import pytest
import zmq

from rufus_serve.channel.keys import GroupKeys, new_token, read_token
from rufus_serve.errors import ConfigError


def test_the_same_token_gives_the_same_keys_everywhere() -> None:
    # Recorded: hosts of different package versions must still agree on the keys.
    keys = GroupKeys.from_token("correct horse battery staple")
    assert keys.server_public == b"NFG588w>rb[#4-:<AY1O-6u)v={(sty$M4aPK.{?"
    assert keys.client_public == b"aj#%:*Kq{i+UCu5D}nC:ZFciO}bh:^a=7h3{AFd3"


def test_keys_are_valid_curve_pairs_and_all_different() -> None:
    keys = GroupKeys.from_token(new_token())
    assert zmq.curve_public(keys.server_secret) == keys.server_public
    assert zmq.curve_public(keys.client_secret) == keys.client_public
    assert len({keys.server_public, keys.server_secret, keys.client_public}) == 3
    assert len(keys.client_secret) == 40


def test_other_tokens_give_other_keys() -> None:
    assert GroupKeys.from_token("a") != GroupKeys.from_token("b")
    assert new_token() != new_token()
    assert len(new_token()) == 43


def test_secrets_do_not_show_in_the_repr() -> None:
    keys = GroupKeys.from_token("token")
    assert keys.server_secret.decode() not in repr(keys)
    assert keys.client_secret.decode() not in repr(keys)


def write_token(path: Path, text: str, mode: int = 0o600) -> Path:
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_token_file_is_read_without_surrounding_whitespace(tmp_path: Path) -> None:
    token = new_token()
    assert read_token(write_token(tmp_path / "token", f"  {token}\n")) == token
    assert read_token(str(tmp_path / "token")) == token


def test_a_group_readable_token_file_is_accepted(tmp_path: Path) -> None:
    assert read_token(write_token(tmp_path / "token", "t" * 32, 0o440))


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        ("t" * 32, 0o644, "readable by everyone .*0644.*chmod 600"),
        ("", 0o600, "holds 0 characters"),
        (" \n", 0o600, "holds 0 characters"),
        ("short", 0o600, "holds 5 characters, fewer than 16"),
        ("schlüssel" * 4, 0o600, "cannot be read"),
    ],
)
def test_an_unfit_token_file_is_named_with_advice(
    tmp_path: Path, text: str, mode: int, reason: str
) -> None:
    path = write_token(tmp_path / "token", text, mode)
    with pytest.raises(ConfigError, match=reason) as refused:
        read_token(path)
    assert str(path) in str(refused.value)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_missing_token_file_is_named_with_advice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent cannot be read.*openssl rand"):
        read_token(tmp_path / "absent")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(tmp_path)
