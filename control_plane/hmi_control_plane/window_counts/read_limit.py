"""How many reads of window counts a process makes at once, each of which can take a hundred megabytes."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from hmi_api.errors import NotReady

_AT_ONCE = 2
_CHUNK_BYTES = 1 << 18
"""The server buffers about this much of a response for a client that reads slowly."""


class ReadLimit:
    """Admits one read of each tenant, until its response was sent, and two of all while they are computed.

    So a tenant whose runs read again and again, or read no response to its end, delays its own runs only.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tenants: set[str] = set()
        self._computing = 0

    def respond(self, tenant: str, compute: Callable[[], bytes]) -> "ReleasingResponse":
        """Return the response with the JSON that ``compute`` returns. Raises NotReady WindowsBeingRead."""
        self._take(tenant)
        try:
            with self._slot():
                content = compute()
            return ReleasingResponse(content, lambda: self._tenants.discard(tenant))
        except BaseException:
            self._tenants.discard(tenant)
            raise

    def _take(self, tenant: str) -> None:
        with self._lock:
            if tenant in self._tenants:
                raise NotReady("WindowsBeingRead", "Another run of this tenant reads its windows; try again.")
            self._tenants.add(tenant)

    @contextmanager
    def _slot(self) -> Iterator[None]:
        with self._lock:
            if self._computing >= _AT_ONCE:
                raise NotReady("WindowsBeingRead", "Windows are being read for other runs; try again.")
            self._computing += 1
        try:
            yield
        finally:
            with self._lock:
                self._computing -= 1


class ReleasingResponse(StreamingResponse):
    """A JSON response that is sent as fast as its reader reads, and calls ``release`` when it has ended."""

    def __init__(self, content: bytes, release: Callable[[], None]) -> None:
        headers = {"Content-Length": str(len(content))}
        super().__init__(_chunks(content), headers=headers, media_type="application/json")
        self._release = release

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()


async def _chunks(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), _CHUNK_BYTES):
        yield content[start : start + _CHUNK_BYTES]
