"""The client of runtimes: kept connections, by aiohttp, and which failures another attempt may mend.

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
"""Servers close what was idle for 5 s, as uvicorn does: a little before that it is not used any more."""
_REFUSED = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


class NoConnectionError(Exception):
    """No connection was made, so nobody has seen the request."""


class ConnectionBrokenError(Exception):
    """The connection ended, or said what is no HTTP, before the answer was there."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    body: bytes


class RuntimeNetwork(Protocol):
    """The way to the runtimes."""

    async def post(self, url: str, token: str, body: bytes) -> Answer:
        """Send JSON and return the answer. Raises NoConnectionError or ConnectionBrokenError."""

    async def close(self) -> None:
        """Close all connections."""


class Connections:
    """Connections to all runtimes, kept for the next request. Use it from one event loop, and close it.

    At most ``limit`` are open; who finds none free waits. ``connect_timeout`` is in seconds. How long an
    answer may take is the caller's to say: one that stops waiting closes its connection.
    """

    def __init__(
        self, *, limit: int = 256, connect_timeout: float = 1.0, idle_seconds: float = _IDLE_SECONDS
    ) -> None:
        self._limit = limit
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout)
        self._idle_seconds = idle_seconds
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, token: str, body: bytes) -> Answer:
        """Send JSON and return the answer. Raises NoConnectionError or ConnectionBrokenError.

        A server may close a kept connection just when a request sets out. One of which nothing came is asked
        again, once: inference changes nothing.
        """
        try:
            try:
                return await self._ask(url, token, body)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if isinstance(error, _REFUSED):
                    raise
                return await self._ask(url, token, body)
        except _REFUSED as error:
            raise NoConnectionError(str(error)) from error
        except (aiohttp.ClientError, ValueError) as error:
            raise ConnectionBrokenError(f"{type(error).__name__} {error}") from error

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def _ask(self, url: str, token: str, body: bytes) -> Answer:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        sent = self._opened().post(url, data=body, headers=headers, allow_redirects=False)
        async with sent as response:
            return Answer(response.status, await response.read())

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:  # not before there is an event loop
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._limit, keepalive_timeout=self._idle_seconds),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
                trust_env=False,
            )
        return self._session


INFER_PATH = "/internal/v1/infer"


class RuntimeUnavailableError(Exception):
    """A runtime did not answer a request; inference changes nothing there, so another may be asked.

    ``refused`` says that no connection was made, so that even the same runtime may be asked again.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class RuntimeClient:
    """Calls runtimes with this part's token. How long it may take is the caller's to say."""

    def __init__(self, token: TokenSource, network: RuntimeNetwork) -> None:
        self._network = network
        self._token = token

    async def infer(self, url: str, request: InferRequest) -> InferReply:
        """Return the runtime's answer. Raises RuntimeUnavailableError."""
        try:
            token = self._token.current()
        except NotReady as error:
            raise RuntimeUnavailableError(error.message) from error
        body = request.model_dump_json(by_alias=True, exclude_none=True).encode()
        try:
            answer = await self._network.post(f"{url.rstrip('/')}{INFER_PATH}", token, body)
        except (NoConnectionError, ConnectionBrokenError) as error:
            refused = isinstance(error, NoConnectionError)
            raise RuntimeUnavailableError(f"{url}: {error}", refused=refused) from error
        if answer.status != 200:
            raise RuntimeUnavailableError(f"{url} answered {answer.status}")
        try:
            reply = InferReply.model_validate_json(answer.body)
        except ValidationError as error:
            raise RuntimeUnavailableError(f"{url} answered what is no InferReply: {error}") from error
        if len(reply.results) != len(request.rows):
            raise RuntimeUnavailableError(f"{url} answered {len(reply.results)} of {len(request.rows)} rows")
        return reply

    async def close(self) -> None:
        """Close all connections."""
        await self._network.close()
