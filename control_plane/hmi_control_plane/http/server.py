"""Serving an application over HTTP: uvicorn with graceful shutdown and a limit on slow headers."""

import asyncio
import gc
import signal
import socket
import sys
from asyncio.events import TimerHandle

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hmi_api.http_server import DrainingServer
from hmi_control_plane.http.health import Readiness
from hmi_control_plane.settings import Settings

_SWITCH_SECONDS = 0.0002
"""Python's thread switch interval; the default of 5 ms is a request's whole time.

The event loop gives up the GIL at each system call. While another thread computes (the flusher, an API call),
the loop then waits for this interval, several times per request.
"""
_GC_THRESHOLD = 10_000
"""Allocations between two garbage collections; Python's default of 700 is a few requests."""


class ControlPlaneServer(DrainingServer):
    """At SIGTERM, report not ready and answer for ``delay`` more seconds, then stop; at SIGINT, stop.

    Clients and load balancers need the delay to notice that this process is stopping.
    """

    def __init__(self, config: uvicorn.Config, readiness: Readiness, delay: float) -> None:
        async def drain(sig: int) -> None:
            readiness.start_draining()
            if sig == signal.SIGTERM:
                await asyncio.sleep(delay)

        super().__init__(config, drain)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start; then exclude all existing objects from garbage collection.

        Modules, routes and schemas live until the end: scanning them would only block requests, for tens of
        milliseconds each time.
        """
        await super().startup(sockets)
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD, *gc.get_threshold()[1:])


def serve(app: FastAPI, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Change settings of the Python process for it."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=HeaderTimeoutProtocol,
        server_header=False,
        access_log=False,  # metrics count requests; probes, heartbeats and polls would flood the log
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    ControlPlaneServer(config, app.state.readiness, settings.drain_delay_seconds).run()


HEADER_SECONDS = 10.0
"""How long headers may take: from a connection's start, or from the first byte after a response."""


class HeaderTimeoutProtocol(HttpToolsProtocol):
    """uvicorn's protocol with a timeout for headers.

    uvicorn waits forever for headers, and for the rest of a body whose request was answered early, as long as
    bytes arrive now and then. ``RequestBodyMiddleware`` limits the time for a body that a handler reads.
    """

    _timer: TimerHandle | None = None
    _in_headers = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """Start the timer for the first request."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Start the timer if headers are incomplete; nearly all arrive at once and need none."""
        super().data_received(data)
        if self._in_headers and self._timer is None:
            self._start_timer()

    def on_message_begin(self) -> None:
        """Note that headers begin."""
        super().on_message_begin()
        self._in_headers = True

    def on_headers_complete(self) -> None:
        """Stop the timer: the headers are complete."""
        self._in_headers = False
        self._stop_timer()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Stop the timer: the body is complete."""
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Start the timer for the rest of a body that was answered early."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self._start_timer()

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(HEADER_SECONDS, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timeout(self) -> None:
        self._timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_timer()  # an earlier request of this connection is still being handled
        elif not self.transport.is_closing():
            self.transport.close()
