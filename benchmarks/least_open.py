"""A reverse proxy that sends each request to the server with the fewest open ones, as an ALB with
`least_outstanding_requests` does. For `router.py` only.

    python benchmarks/least_open.py PORT URL URL...
"""

import sys
from collections import Counter

import aiohttp
from aiohttp import web


class LeastOpen:
    """One process, one event loop; ties go to whoever answered fewest so far."""

    def __init__(self, urls: list[str]) -> None:
        self._urls = urls
        self._open: Counter[str] = Counter()
        self._sent: Counter[str] = Counter()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Pass a request on, and its answer back piece by piece."""
        url = min(self._urls, key=lambda each: (self._open[each], self._sent[each]))
        self._open[url] += 1
        self._sent[url] += 1
        try:
            return await self._pass_on(request, url)
        finally:
            self._open[url] -= 1

    async def _pass_on(self, request: web.Request, url: str) -> web.StreamResponse:
        session = request.app[SESSION]
        headers = {"Content-Type": request.headers.get("Content-Type", "application/json")}
        async with session.request(
            request.method, f"{url}{request.path_qs}", data=await request.read(), headers=headers
        ) as theirs:
            ours = web.StreamResponse(status=theirs.status)
            ours.content_type = theirs.content_type
            await ours.prepare(request)
            async for piece in theirs.content.iter_any():
                await ours.write(piece)
            return ours


SESSION: web.AppKey[aiohttp.ClientSession] = web.AppKey("session", aiohttp.ClientSession)


async def _sessions(app: web.Application):
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout()) as app[
        SESSION
    ]:
        yield


def main() -> None:
    port, *urls = sys.argv[1:]
    app = web.Application()
    app.cleanup_ctx.append(_sessions)
    app.router.add_route("*", "/{path:.*}", LeastOpen(urls).answer)
    web.run_app(app, host="127.0.0.1", port=int(port), print=None)


if __name__ == "__main__":
    main()
