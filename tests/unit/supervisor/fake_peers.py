"""A `PeerServer` without sockets."""

from rufus_serve.protocol.messages import AnyMessage


class FakePeerServer:
    """Keeps what is sent, by peer; peers in `gone` are not connected."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, AnyMessage]] = []
        self.gone: set[bytes] = set()

    async def send(self, peer: bytes, message: AnyMessage) -> bool:
        if peer in self.gone:
            return False
        self.sent.append((peer, message))
        return True

    def take(self) -> list[tuple[bytes, AnyMessage]]:
        sent, self.sent = self.sent, []
        return sent
