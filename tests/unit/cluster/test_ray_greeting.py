import msgspec
import pytest
from ray.exceptions import AuthenticationError, RpcError

from rufus_serve.cluster import ray_greeting
from rufus_serve.cluster.ray_greeting import Versions, announce, difference, greet, own_versions
from rufus_serve.errors import ClusterError, HandshakeRefused

OURS = Versions(protocol=1, package="0.1.0", python="3.12.12", ray="2.60.0")


class FakeHead:
    """Stands for GcsClient; what is put can be got."""

    def __init__(self, *, fails: Exception | None = None) -> None:
        self.stored: dict[tuple[bytes, bytes], bytes] = {}
        self.fails = fails

    def __call__(self, *, address: str) -> "FakeHead":
        if self.fails is not None:
            raise self.fails
        return self

    def internal_kv_put(self, key, value, overwrite, namespace, *, timeout) -> None:
        self.stored[namespace, key] = value

    def internal_kv_get(self, key, namespace, *, timeout) -> bytes | None:
        return self.stored.get((namespace, key))


@pytest.fixture
def head(monkeypatch):
    head = FakeHead()
    monkeypatch.setattr(ray_greeting, "GcsClient", head)
    return head


def test_equal_hosts_go_together_whatever_their_python_patch():
    assert difference(OURS, msgspec.structs.replace(OURS, python="3.12.1")) == ""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"protocol": 2, "package": "0.2.0"},
            "protocol 1 (rufus-serve 0.1.0), the leader 2 (0.2.0)",
        ),
        ({"python": "3.11.12"}, "Python 3.12, the leader 3.11"),
        ({"ray": "2.59.0"}, "Ray 2.60.0, the leader 2.59.0"),
    ],
)
def test_what_differs_is_named_with_both_versions(change, named):
    assert named in difference(OURS, msgspec.structs.replace(OURS, **change))


def test_a_host_finds_the_leader_that_announced_itself(head):
    assert greet("h:1") == ""
    announce("h:1")
    assert greet("h:1")


def test_another_head_has_another_identity(head):
    announce("h:1")
    first = greet("h:1")
    assert greet("h:1") == first
    announce("h:1")
    assert greet("h:1") not in ("", first)


def test_a_leader_of_another_version_is_not_followed(head):
    theirs = msgspec.structs.replace(own_versions(), ray="1.0")
    head.stored[b"rufus-serve", b"leader"] = msgspec.json.encode(theirs)
    with pytest.raises(HandshakeRefused, match=r"leader at h:1 cannot take this host.* Ray "):
        greet("h:1")


def test_a_newer_leader_that_speaks_the_same_protocol_is_followed_with_a_word(head, caplog):
    theirs = msgspec.structs.replace(own_versions(), package="99.1")
    head.stored[b"rufus-serve", b"leader"] = msgspec.json.encode(theirs)
    assert greet("h:1")
    assert "the leader at h:1 has 99.1" in caplog.text


def test_another_token_is_named(head):
    head.fails = AuthenticationError("InvalidAuthToken")
    with pytest.raises(HandshakeRefused, match="token"):
        greet("h:1")


def test_a_head_that_does_not_answer_is_waited_for(head):
    head.fails = RpcError("Timed out while waiting for GCS to become available.")
    assert greet("h:1") == ""


def test_a_head_that_takes_no_greeting_is_told(head):
    head.fails = RpcError("gone")
    with pytest.raises(ClusterError, match="h:1 takes no greeting: gone"):
        announce("h:1")
