"""The two ends of a request that we may cut short: what is answered, and what is received."""

import asyncio

from rufus_serve.leader.api.http_error import AsgiMessage, HttpError, Receive, Send


class Answer:
    """Passes a response on, until it is ended with an error."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = self._complete = self._is_stream = False

    async def __call__(self, message: AsgiMessage) -> None:
        """Pass one ASGI message on; nothing more once the response is complete."""
        if self._complete:
            return
        if message["type"] == "http.response.start":
            self._started = True
            kind = dict(message.get("headers", ())).get(b"content-type", b"")
            self._is_stream = kind.startswith(b"text/event-stream")
        elif message["type"] == "http.response.body":
            self._complete = not message.get("more_body", False)
        await self._send(message)

    def shut(self) -> bool:
        """Let nothing more of the app through; whether there was more to come."""
        was_open, self._complete = not self._complete, True
        return was_open

    async def fail(self, error: HttpError) -> None:
        """End a shut answer with `error`: a response, or a stream's last event.

        Waits for the peer to read; a response that had begun and is no stream is left cut off.
        """
        if not self._started:
            await error.send(self._send)
        elif self._is_stream:
            event = b"data: " + error.body() + b"\n\n"
            await self._send({"type": "http.response.body", "body": event, "more_body": False})


class Replay:
    """An ASGI receive that gives a body read before, then what really comes.

    `hang_up` makes it report that the client is gone. vLLM's routes end their work on that, but
    not when their task is cancelled.
    """

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._first: AsgiMessage | None = {"type": "http.request", "body": body}
        self._receive = receive
        self._hung_up = asyncio.Event()

    def hang_up(self) -> None:
        """Report a disconnect from now on."""
        self._hung_up.set()

    async def __call__(self) -> AsgiMessage:
        """The next message."""
        if self._first is not None:
            message, self._first = self._first, None
            return message
        real = asyncio.ensure_future(self._receive())
        ours = asyncio.ensure_future(self._hung_up.wait())
        try:
            await asyncio.wait({real, ours}, return_when=asyncio.FIRST_COMPLETED)
            return real.result() if real.done() else {"type": "http.disconnect"}
        finally:
            real.cancel()
            ours.cancel()
