"""ASGI middleware that limits request bodies, for every HTTP server of HMI.

A body is limited in bytes and in seconds. It is read only when a handler asks for it, so a caller without
permission gets that answer first.
"""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

Refuse = Callable[[int, str], Exception]
"""Makes the exception that a framework answers with this HTTP status and message."""

BODY_SECONDS = 30.0
"""How long a body may take to arrive, where nothing else is set."""

_GZIP_HEADER = 16 + zlib.MAX_WBITS
_IDENTITY = (b"", b"identity")


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """Bounds of a request's body.

    ``bytes`` holds for the body as it is sent, and for what it is unpacked to. ``seconds`` is the time for
    all of it, or with ``each_part`` for every next part, where bodies are long by nature. ``gzip`` says
    whether one may come packed.
    """

    bytes: int
    seconds: float = BODY_SECONDS
    each_part: bool = False
    gzip: bool = False


class RequestBodyMiddleware:
    """Refuse bodies that are too long (413), too slow (408), or packed in a way that is not read (415).

    ``limits`` gives path prefixes bounds of their own; the longest that fits applies, else ``default``.
    """

    def __init__(
        self, app: App, *, default: BodyLimit, refuse: Refuse, limits: Mapping[str, BodyLimit] | None = None
    ) -> None:
        self._app = app
        self._default = default
        self._refuse = refuse
        self._limits = sorted((limits or {}).items(), key=lambda item: -len(item[0]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] == "http":
            receive = _Body(scope, receive, self._limit_for(scope["path"]), self._refuse).receive
        await self._app(scope, receive, send)

    def _limit_for(self, path: str) -> BodyLimit:
        return next((limit for prefix, limit in self._limits if path.startswith(prefix)), self._default)


class _Body:
    """One request's body on its way to the handler."""

    __slots__ = ("_limit", "_over", "_receive", "_refuse", "_scope", "_seen", "_unpacker", "_until")

    def __init__(self, scope: Scope, receive: Receive, limit: BodyLimit, refuse: Refuse) -> None:
        self._scope = scope
        self._receive = receive
        self._limit = limit
        self._refuse = refuse
        self._until: float | None = None
        self._unpacker: _Unpacker | None = None
        self._seen = 0
        self._over = False

    async def receive(self) -> Message:
        """Return the next message; raises what ``refuse`` makes once the body is out of bounds."""
        if self._over:
            return await self._receive()
        now = asyncio.get_running_loop().time()
        if self._until is None:
            self._look_at_headers()
        if self._until is None or self._limit.each_part:
            self._until = now + self._limit.seconds
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError as error:
            raise self._refuse(408, f"The body did not arrive within {self._limit.seconds:g} s.") from error
        if message["type"] != "http.request":
            self._over = True
            return message
        self._over = not message.get("more_body", False)
        return self._checked(message)

    def _look_at_headers(self) -> None:
        for name, value in self._scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self._limit.bytes:
                raise self._too_long()
            if name == b"content-encoding":
                self._choose_unpacker(value.strip().lower())

    def _choose_unpacker(self, encoding: bytes) -> None:
        if encoding in _IDENTITY:
            return
        if encoding != b"gzip" or not self._limit.gzip:
            taken = "gzip, or none" if self._limit.gzip else "none"
            raise self._refuse(
                415, f"Content-Encoding {encoding.decode('latin-1')} is not read here; use {taken}."
            )
        self._unpacker = _Unpacker()

    def _checked(self, message: Message) -> Message:
        part: bytes = message.get("body", b"")
        if self._unpacker is not None:
            try:
                part = self._unpacker.unpack(part, self._limit.bytes - self._seen + 1, last=self._over)
            except zlib.error as error:
                raise self._refuse(400, "The body is not valid gzip.") from error
            message = {**message, "body": part}
        self._seen += len(part)
        if self._seen > self._limit.bytes:
            raise self._too_long()
        return message

    def _too_long(self) -> Exception:
        limit = self._limit.bytes
        return self._refuse(
            413, f"The body is longer than {limit} bytes; send fewer or shorter texts a request."
        )


class _Unpacker:
    """Undoes gzip part by part, never making more than it is asked for."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(_GZIP_HEADER)

    def unpack(self, part: bytes, most: int, *, last: bool) -> bytes:
        """Return at most ``most`` bytes; so many mean that there may be more. Raises zlib.error."""
        unpacked = self._stream.decompress(part, most)
        if self._stream.unused_data:
            raise zlib.error("something follows the end")
        if last and len(unpacked) < most and not self._stream.eof:
            raise zlib.error("cut off")
        return unpacked
