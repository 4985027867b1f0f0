import asyncio
import socket

from rufus_serve.leader.__main__ import bind


def test_what_is_streamed_in_small_pieces_is_sent_at_once() -> None:
    """A peer that puts off its acknowledgements would else hold each piece back for 40 ms."""

    async def scenario() -> None:
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                accepted = transport.get_extra_info("socket")
                told.set_result(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))

        with bind("127.0.0.1", 0) as sock:
            server = await asyncio.get_running_loop().create_server(Protocol, sock=sock)
            _, writer = await asyncio.open_connection(*sock.getsockname())
            assert await asyncio.wait_for(told, 10)
            writer.close()
            server.close()

    asyncio.run(scenario())
