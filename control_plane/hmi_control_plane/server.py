"""Serving an application until it is told to stop: readiness goes first, then requests end, then the rest."""

import asyncio
import signal
from types import FrameType

import uvicorn
from fastapi import FastAPI

from hmi_control_plane.readiness import Readiness
from hmi_control_plane.settings import Settings


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
    """Serve until SIGTERM or SIGINT."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        server_header=False,
        access_log=False,  # metrics count requests; probes, heartbeats and polls would bury what matters
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)),
    )
    DrainingServer(config, app.state.readiness, settings.drain_delay_seconds).run()
