"""Parses requests; one that asks for another protocol is served as if it did not ask.

Java's client offers HTTP/2 with its first request (`Upgrade: h2c`). What follows such a head is
nothing to httptools: a body would be lost, or be taken for the next request.
"""

from collections.abc import Iterator

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_ASKING = b"upgrade"


class RequestParser:
    """httptools' parser of one connection's requests, without upgrades."""

    def __init__(self, protocol: HttpToolsProtocol) -> None:
        self._protocol = protocol
        self.on_url, self.on_header = protocol.on_url, protocol.on_header
        self.on_body = protocol.on_body
        self.on_message_begin = protocol.on_message_begin
        self._parser = self._new()

    def feed_data(self, data: bytes) -> None:
        """Parse, calling the protocol.

        Raises:
            httptools.HttpParserError: this is no HTTP/1.1, or asks for a tunnel.
        """
        view = memoryview(data)
        while view:
            view = view[self._feed(view) :]

    def on_headers_complete(self) -> None:
        """Pass on that a head is there, if it will not come again."""
        if not self._parser.should_upgrade():
            self._protocol.on_headers_complete()

    def on_message_complete(self) -> None:
        """Pass on that a body is there."""
        if not self._parser.should_upgrade():
            self._protocol.on_message_complete()

    def get_http_version(self) -> str:
        """Of the request being parsed."""
        return self._parser.get_http_version()

    def get_method(self) -> bytes:
        """Of the request being parsed."""
        return self._parser.get_method()

    def should_keep_alive(self) -> bool:
        """Whether the connection may go on after the request being parsed."""
        return self._parser.should_keep_alive()

    def should_upgrade(self) -> bool:
        """What uvicorn asks; never."""
        return False

    def _feed(self, data: memoryview) -> int:
        """Parse all, or up to the end of a head that asks; the bytes that are done with."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            head = b"".join(self._plain_head())
            self._parser = self._new()
            self._parser.feed_data(head)
            return int(upgrade.args[0])
        return len(data)

    def _new(self) -> httptools.HttpRequestParser:
        parser = httptools.HttpRequestParser(self)
        # As uvicorn has it: a request with `Connection: close` may have others behind it.
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def _plain_head(self) -> Iterator[bytes]:
        method = self._parser.get_method()
        if method == b"CONNECT":
            raise httptools.HttpParserError("CONNECT")
        version = self._parser.get_http_version().encode()
        yield b"%s %s HTTP/%s\r\n" % (method, self._protocol.url, version)
        for name, value in self._protocol.headers:
            if name != _ASKING:
                yield b"%s: %s\r\n" % (name, value)
        yield b"\r\n"
