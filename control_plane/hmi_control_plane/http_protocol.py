"""HTTP as uvicorn speaks it, without connections that are held open by asking slowly."""

import asyncio
from asyncio.events import TimerHandle

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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
