"""Kept connections to the runtimes: HTTP/1.1 with nothing that HMI's own parts do not say to one another.

No cookies, redirects, proxies or credentials from the environment; an answer has a length or comes in chunks.
A general client costs several times what the rest of the gateway does.
"""

import asyncio
import ssl
from dataclasses import dataclass
from functools import lru_cache
from time import monotonic
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

_IDLE_SECONDS = 4.0
"""Servers close what was idle for 5 s, as uvicorn does: a little before that it is not used any more."""


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


@dataclass(frozen=True, slots=True)
class _Server:
    """Where an address leads."""

    host: str
    port: int
    tls: bool


@dataclass(frozen=True, slots=True)
class _Address:
    """An address taken apart: its server, and the first bytes of a request to it."""

    server: _Server
    head: bytes


class _Connection(asyncio.Protocol):
    """One connection; requests go over it one after another.

    ``is_usable`` says whether another can. ``has_heard`` says whether any byte came since the last was sent.
    """

    def __init__(self, server: _Server) -> None:
        self.server = server
        self.idle_since = 0.0
        self.is_usable = True
        self.has_heard = False
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Answer] | None = None
        self._parts: list[bytes] = []

    async def ask(self, request: bytes) -> Answer:
        """Send a request; return its answer. Raises ConnectionBrokenError."""
        if self._transport is None or not self.is_usable:
            raise ConnectionBrokenError("the connection was closed")
        self.has_heard = False
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            return await self._answer
        except BaseException:  # what comes after this would be taken for the next request's answer
            self.close()
            raise
        finally:
            self._answer = None

    def close(self) -> None:
        """Close at once."""
        self.is_usable = False
        if self._transport is not None:
            self._transport.abort()

    # --- what the event loop tells ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no asyncio.Transport by name

    def data_received(self, data: bytes) -> None:
        """Take a piece of an answer."""
        self.has_heard = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"what came is no HTTP answer: {error}")
        if self._answer is None:  # nobody has asked
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Take note that it is over."""
        self._fail(f"the connection was closed: {exc}" if exc else "the connection was closed")

    def _fail(self, message: str) -> None:
        self.is_usable = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionBrokenError(message))

    # --- what the parser tells --------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Take the beginning of an answer."""
        self._parts = []
        if self._answer is None or self._answer.done():  # there was no question
            self.is_usable = False

    def on_body(self, body: bytes) -> None:
        """Take a piece of its body."""
        self._parts.append(body)

    def on_message_complete(self) -> None:
        """Take its end."""
        status = self._parser.get_status_code()
        if status < 200:  # news of an answer that is still to come
            return
        if not self._parser.should_keep_alive():
            self.is_usable = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(status, b"".join(self._parts)))


class Connections:
    """Connections to all runtimes, kept for the next request. Use it from one event loop, and close it.

    At most ``limit`` are open; who finds none free waits. ``connect_timeout`` is in seconds. How long an
    answer may take is the caller's to say: one that stops waiting closes its connection.
    """

    def __init__(
        self, *, limit: int = 256, connect_timeout: float = 1.0, idle_seconds: float = _IDLE_SECONDS
    ) -> None:
        self._limit = limit
        self._connect_timeout = connect_timeout
        self._idle_seconds = idle_seconds
        self._free = asyncio.Semaphore(limit)
        self._busy = 0
        # Dictionaries as ordered sets: the one that was idle longest comes first.
        self._idle: dict[_Connection, None] = {}
        self._idle_at: dict[_Server, dict[_Connection, None]] = {}
        self._tls: ssl.SSLContext | None = None

    async def post(self, url: str, token: str, body: bytes) -> Answer:
        """Send JSON and return the answer. Raises NoConnectionError or ConnectionBrokenError."""
        try:
            address = _address(url)
            shown = token.encode("ascii")
        except ValueError as error:
            raise ConnectionBrokenError(str(error)) from error
        request = b"%bAuthorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b" % (
            address.head,
            shown,
            len(body),
            body,
        )
        async with self._free:
            self._busy += 1
            try:
                return await self._ask(address.server, request)
            finally:
                self._busy -= 1

    async def close(self) -> None:
        """Close the connections that nobody uses."""
        for connection in list(self._idle):
            self._forget(connection)
            connection.close()
        await asyncio.sleep(0)  # for the event loop to let go of them

    async def _ask(self, server: _Server, request: bytes) -> Answer:
        """Ask over a kept connection, or a new one.

        A server may close a kept connection just when a request sets out. One of which nothing came is asked
        again: inference changes nothing.
        """
        kept = self._take(server)
        if kept is not None:
            try:
                answer = await kept.ask(request)
            except ConnectionBrokenError:
                if kept.has_heard:
                    raise
            else:
                self._keep(kept)
                return answer
        fresh = await self._connect(server)
        answer = await fresh.ask(request)
        self._keep(fresh)
        return answer

    def _take(self, server: _Server) -> _Connection | None:
        """Return the connection that was used last; those found to be too old are closed."""
        kept = self._idle_at.get(server)
        while kept:
            connection = next(reversed(kept))
            self._forget(connection)
            if connection.is_usable and monotonic() - connection.idle_since < self._idle_seconds:
                return connection
            connection.close()
        return None

    def _keep(self, connection: _Connection) -> None:
        if not connection.is_usable:
            connection.close()
            return
        connection.idle_since = monotonic()
        self._idle[connection] = None
        self._idle_at.setdefault(connection.server, {})[connection] = None

    def _forget(self, connection: _Connection) -> None:
        del self._idle[connection]
        kept = self._idle_at[connection.server]
        del kept[connection]
        if not kept:
            del self._idle_at[connection.server]

    async def _connect(self, server: _Server) -> _Connection:
        while self._idle and self._busy + len(self._idle) > self._limit:
            oldest = next(iter(self._idle))
            self._forget(oldest)
            oldest.close()
        if server.tls and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            async with asyncio.timeout(self._connect_timeout):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(server),
                    server.host,
                    server.port,
                    ssl=self._tls if server.tls else None,
                )
        except TimeoutError as error:
            raise NoConnectionError(f"no connection in {self._connect_timeout:g} s") from error
        except OSError as error:
            raise NoConnectionError(str(error)) from error
        return connection


@lru_cache(maxsize=4096)
def _address(url: str) -> _Address:
    """Return an address taken apart; raises ValueError for what is none."""
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(f"{url!r} is no address of HTTP")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError(f"{url!r} holds what an address cannot")
    tls = parts.scheme == "https"
    server = _Server(parts.hostname, parts.port or (443 if tls else 80), tls)
    host = parts.netloc.rpartition("@")[2]
    head = f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return _Address(server, head.encode())
