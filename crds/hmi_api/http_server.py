"""The uvicorn server of control plane and runtime: listens on IPv4 and IPv6, and drains before it stops."""

import asyncio
import socket
import sys
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

import uvicorn

from hmi_api.servers import listening_socket


class DrainingServer(uvicorn.Server):
    """At the first signal, run ``drain`` while requests are still answered; then stop as uvicorn does.

    ``drain`` gets the number of the signal. A second signal stops the server without waiting for it.
    """

    def __init__(self, config: uvicorn.Config, drain: Callable[[int], Coroutine[Any, Any, None]]) -> None:
        super().__init__(config)
        self._drain = drain
        self._draining: asyncio.Task[None] | None = None
        self._has_signal = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen and start; exit with a message if the address is not available."""
        try:
            sockets = sockets or [listening_socket(self.config.host, self.config.port)]
        except OSError as error:
            sys.exit(f"Cannot listen: {error}")
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if self._has_signal:
            super().handle_exit(sig, frame)
            return
        self._has_signal = True
        # Python runs signal handlers in the event loop's own thread, between two of its callbacks.
        asyncio.get_running_loop().call_soon_threadsafe(self._start_draining, sig)

    def _start_draining(self, sig: int) -> None:
        self._draining = asyncio.create_task(self._drain(sig))
        self._draining.add_done_callback(lambda _: super(DrainingServer, self).handle_exit(sig, None))
