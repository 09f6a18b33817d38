"""The client of runtimes: kept-alive connections by aiohttp, and failures after which a retry may help.

No cookies, redirects, proxies or credentials from the environment: HMI's processes need none of them.
"""

from dataclasses import dataclass
from typing import Protocol

import aiohttp
from pydantic import ValidationError

from hmi_api.errors import NotReady
from hmi_api.internal.inference import InferReply, InferRequest
from hmi_api.security.bearer import TokenSource

_IDLE_SECONDS = 4.0
"""uvicorn closes connections that were idle for 5 s; the client stops using them a little earlier."""
_REFUSED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class RuntimeUnavailableError(Exception):
    """A runtime did not answer a request. Another may be tried, since inference has no side effects."""


class NoConnectionError(RuntimeUnavailableError):
    """No connection was made: the runtime has not seen the request, so it may be sent there again."""


class ConnectionBrokenError(RuntimeUnavailableError):
    """The connection was closed, or sent invalid HTTP, before the response was complete."""


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A complete response."""

    status: int
    body: bytes


class RuntimeNetwork(Protocol):
    """The connections to the runtimes; tests replace it."""

    async def post(self, url: str, token: str, body: bytes) -> HttpResponse:
        """Send JSON and return the response. Raise NoConnectionError or ConnectionBrokenError."""

    async def close(self) -> None:
        """Close all connections."""


class HttpConnections:
    """A pool of HTTP connections to all runtimes. Use it from one event loop, and close it.

    At most ``limit`` are open; further requests wait. ``connect_timeout`` is in seconds. The caller limits
    how long a response may take: cancelling a request closes its connection.
    """

    def __init__(
        self, *, limit: int = 256, connect_timeout: float = 1.0, idle_seconds: float = _IDLE_SECONDS
    ) -> None:
        self._limit = limit
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout)
        self._idle_seconds = idle_seconds
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, token: str, body: bytes) -> HttpResponse:
        """Send JSON and return the response. Raise NoConnectionError or ConnectionBrokenError.

        A server may close a kept connection just when a request is sent. Such a request is sent again, once:
        inference has no side effects.
        """
        try:
            try:
                return await self._send(url, token, body)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if isinstance(error, _REFUSED):
                    raise
                return await self._send(url, token, body)
        except _REFUSED as error:
            raise NoConnectionError(str(error)) from error
        except (aiohttp.ClientError, ValueError) as error:
            raise ConnectionBrokenError(f"{type(error).__name__} {error}") from error

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _send(self, url: str, token: str, body: bytes) -> HttpResponse:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        sent = self._open_session().post(url, data=body, headers=headers, allow_redirects=False)
        async with sent as response:
            return HttpResponse(response.status, await response.read())

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:  # needs a running event loop
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._limit, keepalive_timeout=self._idle_seconds),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
                trust_env=False,
            )
        return self._session


INFER_PATH = "/internal/v1/infer"


class RuntimeClient:
    """Calls runtimes with the gateway's internal token. The caller sets the deadline."""

    def __init__(self, token: TokenSource, network: RuntimeNetwork) -> None:
        self._network = network
        self._token = token

    async def infer(self, url: str, request: InferRequest) -> InferReply:
        """Return the runtime's reply. Raise RuntimeUnavailableError."""
        try:
            token = self._token.current()
        except NotReady as error:
            raise RuntimeUnavailableError(error.message) from error
        body = request.model_dump_json(by_alias=True, exclude_none=True).encode()
        response = await self._network.post(f"{url.rstrip('/')}{INFER_PATH}", token, body)
        if response.status != 200:
            raise RuntimeUnavailableError(f"it answered {response.status}")
        try:
            reply = InferReply.model_validate_json(response.body)
        except ValidationError as error:
            raise RuntimeUnavailableError(f"it sent an invalid InferReply: {error}") from error
        if len(reply.results) != len(request.rows):
            raise RuntimeUnavailableError(f"it answered {len(reply.results)} of {len(request.rows)} rows")
        return reply

    async def close(self) -> None:
        """Close all connections."""
        await self._network.close()
