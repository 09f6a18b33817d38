"""Serving an application over HTTP until a signal: uvicorn with a slow end and a limit on slow headers."""

import asyncio
import gc
import signal
import socket
import sys
from asyncio.events import TimerHandle
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from hmi_api.servers import listening_socket
from hmi_control_plane.http.health import Readiness
from hmi_control_plane.settings import Settings

_SWITCH_SECONDS = 0.0002
"""How long a thread that computes keeps the others from going on; Python's 5 ms is a request's whole time.

The loop gives way at each system call. Beside a thread that computes (the flusher, an API call in its thread)
it then waits for so long, several times a request.
"""
_NEW_OBJECTS = 10_000
"""Objects between two looks for garbage; Python's 700 are a few requests."""


class DrainingServer(uvicorn.Server):
    """At SIGTERM it says that it is not ready and goes on answering for ``delay`` seconds, then drains.

    Whoever sends requests needs that time to learn that this process is going. SIGINT, and a second signal,
    stop at once.
    """

    def __init__(self, config: uvicorn.Config, readiness: Readiness, delay: float) -> None:
        super().__init__(config)
        self._readiness = readiness
        self._delay = delay
        self._told = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start; then take what was made so far out of the sight of the garbage collector.

        Modules, routes and schemas stay until the end: looking through them would only stop requests, for
        tens of milliseconds each time.
        """
        await super().startup(sockets or [self._listen()])
        gc.collect()
        gc.freeze()
        gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])

    def _listen(self) -> socket.socket:
        try:
            return listening_socket(self.config.host, self.config.port)
        except OSError as error:
            sys.exit(f"Cannot listen: {error}")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        self._readiness.start_draining()
        if sig == signal.SIGTERM and not self._told and self._delay:
            self._told = True
            loop = asyncio.get_running_loop()  # the handler runs in the loop's own thread
            loop.call_soon_threadsafe(loop.call_later, self._delay, super().handle_exit, sig, None)
        else:
            super().handle_exit(sig, frame)


def serve(app: FastAPI, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; this is the process's only business, so it sets Python up for it."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=TimedHttpProtocol,
        server_header=False,
        access_log=False,  # metrics count requests; probes, heartbeats and polls would bury what matters
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    DrainingServer(config, app.state.readiness, settings.drain_delay_seconds).run()


HEADER_SECONDS = 10.0
"""How long headers may take: from a connection's start, or from the first byte after an answer."""


class TimedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which closes connections whose headers are late.

    uvicorn itself waits for headers for ever, and so it does for the rest of a body whose request was
    answered early, as long as a byte comes now and then. A body that a handler waits for is bounded elsewhere
    (``RequestBodyMiddleware``).
    """

    _deadline: TimerHandle | None = None
    _in_headers = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn does
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._start_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on; headers that came whole, as nearly all do, need no timer."""
        super().data_received(data)
        if self._in_headers and self._deadline is None:
            self._start_waiting()

    def on_message_begin(self) -> None:
        """Note that a request begins."""
        super().on_message_begin()
        self._in_headers = True

    def on_headers_complete(self) -> None:
        """Note that a request's headers are there."""
        self._in_headers = False
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that a request's body is there."""
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """After an answer that did not wait for the body, give the rest of it the time of headers."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self._start_waiting()

    def _start_waiting(self) -> None:
        self._stop_waiting()
        self._deadline = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_waiting()  # an earlier request of this connection is still being answered
        elif not self.transport.is_closing():
            self.transport.close()
