"""Serving an application until it is told to stop: readiness goes first, then requests end, then the rest."""

import asyncio
import gc
import signal
import socket
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI

from hmi_api.servers import listening_socket
from hmi_control_plane.http_protocol import TimedHttpProtocol
from hmi_control_plane.readiness import Readiness
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
