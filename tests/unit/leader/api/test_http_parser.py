"""Requests reach the protocol whole, whatever other protocol they ask for."""

import httptools
import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rufus_serve.leader.api.http_parser import RequestParser

H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
WEBSOCKET = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"


class Seen(HttpToolsProtocol):
    """A protocol that keeps what it is told of."""

    def __init__(self) -> None:
        self.requests: list[tuple[bytes, bytes, bytes]] = []
        self.heads = 0
        self.parser = RequestParser(self)  # type: ignore[assignment]

    def on_message_begin(self) -> None:
        self.url, self.headers, self.body = b"", [], b""

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.heads += 1
        assert b"upgrade" not in dict(self.headers)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.requests.append((self.parser.get_method(), self.url, self.body))


def post(body: bytes, fields: bytes) -> bytes:
    return b"POST /a HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s" % (fields, len(body), body)


@pytest.mark.parametrize("fields", [b"", H2C, WEBSOCKET])
@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_bodies_arrive_in_pieces_of_any_size(fields: bytes, piece: int) -> None:
    seen = Seen()
    sent = post(b"first", fields) + post(b"GET / HTTP/1.1\r\n\r\n", fields) + post(b"", fields)
    for start in range(0, len(sent), piece):
        seen.parser.feed_data(sent[start : start + piece])
    bodies = (b"first", b"GET / HTTP/1.1\r\n\r\n", b"")
    assert seen.requests == [(b"POST", b"/a", body) for body in bodies]
    assert seen.heads == 3


def test_a_chunked_body_arrives_as_well() -> None:
    seen = Seen()
    head = b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + H2C + b"\r\n"
    seen.parser.feed_data(head + b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
    assert seen.requests == [(b"POST", b"/a", b"abc")]


def test_a_tunnel_is_refused() -> None:
    with pytest.raises(httptools.HttpParserError):
        Seen().parser.feed_data(b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n")
