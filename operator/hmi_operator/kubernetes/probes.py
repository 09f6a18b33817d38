"""The HTTP side for the kubelet and Prometheus: ``/healthz``, ``/readyz`` and ``/metrics``."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from hmi_api.servers import listening_socket

Probe = Callable[[], str | None]
"""Returns what is wrong, or None."""


@asynccontextmanager
async def serving(
    host: str, port: int, *, alive: Probe, ready: Probe, registry: CollectorRegistry
) -> AsyncIterator[int]:
    """Serve while the block runs; gives the port, which matters where 0 was asked for."""

    def answering(probe: Probe) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(_: web.Request) -> web.Response:
            trouble = probe()
            return web.Response(text=trouble or "ok", status=503 if trouble else 200)

        return answer

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", answering(alive))
    app.router.add_get("/readyz", answering(ready))
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.SockSite(runner, listening_socket(host, port))
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
