import socket
import ssl
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rufus_serve.cluster.ray_tls import GroupTls
from rufus_serve.errors import HandshakeRefused

TOKEN, OTHER = "t" * 64, "o" * 64
ADDRESS = "10.1.2.3"


@contextmanager
def answering(tls: GroupTls | None) -> Iterator[tuple[int, list[bytes]]]:
    """Port of a server that has `tls`'s certificate, or plainly answers; and what it was sent."""
    received: list[bytes] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if tls is not None:
        context.load_cert_chain(
            tls.environ["RAY_TLS_SERVER_CERT"], tls.environ["RAY_TLS_SERVER_KEY"]
        )
        context.load_verify_locations(tls.environ["RAY_TLS_CA_CERT"])
        context.verify_mode = ssl.CERT_REQUIRED

    def serve(listener: socket.socket) -> None:
        plain, _ = listener.accept()
        with plain:
            if tls is None:
                received.append(plain.recv(1 << 16))
                plain.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                return
            try:
                with context.wrap_socket(plain, server_side=True) as proven:
                    received.append(proven.recv(1 << 16))
            except OSError:
                return

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield listener.getsockname()[1], received
        thread.join()


def test_hosts_with_one_token_take_each_other_and_learn_the_leaders_address(tmp_path):
    leader = GroupTls(TOKEN, tmp_path / "leader", address=ADDRESS)
    follower = GroupTls(TOKEN, tmp_path / "follower")
    with answering(leader) as (port, _):
        assert follower.leader_address("localhost", port) == ADDRESS


def test_a_leader_with_another_token_is_refused(tmp_path):
    leader = GroupTls(OTHER, tmp_path / "leader", address=ADDRESS)
    follower = GroupTls(TOKEN, tmp_path / "follower")
    with (
        answering(leader) as (port, received),
        pytest.raises(HandshakeRefused, match="started with another one"),
    ):
        follower.leader_address("127.0.0.1", port)
    assert not any(received)


def test_what_does_not_speak_tls_is_refused_and_told_nothing(tmp_path):
    follower = GroupTls(TOKEN, tmp_path)
    with (
        answering(None) as (port, received),
        pytest.raises(HandshakeRefused, match="does not prove"),
    ):
        follower.leader_address("127.0.0.1", port)
    assert TOKEN.encode() not in received[0]


def test_a_peer_that_is_not_there_or_hangs_up_may_come_yet(tmp_path):
    follower = GroupTls(TOKEN, tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def hang_up() -> None:
            listener.accept()[0].close()

        hanging_up = threading.Thread(target=hang_up)
        hanging_up.start()
        with pytest.raises(OSError, match=r"."):
            follower.leader_address("127.0.0.1", port)
        hanging_up.join()
    with pytest.raises(ConnectionRefusedError):
        follower.leader_address("127.0.0.1", port)


def test_a_stranger_cannot_reach_a_member(tmp_path):
    member, stranger = (GroupTls(token, tmp_path / token[0]) for token in (TOKEN, OTHER))
    context = ssl.create_default_context(cafile=member.environ["RAY_TLS_CA_CERT"])
    context.load_cert_chain(
        stranger.environ["RAY_TLS_SERVER_CERT"], stranger.environ["RAY_TLS_SERVER_KEY"]
    )

    def intrude(port: int) -> None:
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
        ):
            sock.sendall(b"x")
            sock.recv(1)

    # The alert that names the reason may come after the connection's end.
    refusal = "unknown ca|EOF|reset|[Bb]roken pipe"
    with answering(member) as (port, received), pytest.raises(OSError, match=refusal):
        intrude(port)
    assert not any(received)


def test_keys_are_the_users_alone_and_the_token_stands_nowhere(tmp_path):
    tls = GroupTls(TOKEN, tmp_path / "tls", address=ADDRESS)
    assert stat.S_IMODE((tmp_path / "tls").stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(tls.environ["RAY_TLS_SERVER_KEY"]).stat().st_mode) == 0o600
    assert all(TOKEN not in path.read_text() for path in (tmp_path / "tls").iterdir())
