"""An HTTP endpoint on a thread of its own, with routes that a test gives it."""

import asyncio
import threading

from aiohttp import web


class ThreadedEndpoint:
    """Serves `routes` of loopback at `url` until it is closed."""

    def __init__(self, routes):
        self._routes = routes
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self):
        app = web.Application()
        app.router.add_routes(self._routes)
        # Clients that hung up may leave answers behind that nobody takes.
        runner = web.AppRunner(app, shutdown_timeout=0.2)

        async def start():
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
            self._ready.set()

        self._loop.run_until_complete(start())
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    def close(self):
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
