"""ASGI middleware that limits request bodies, for every HTTP server of HMI.

A body is limited in bytes and in seconds. It is read only when a handler asks for it, so a caller without
permission is refused first.
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

    ``bytes`` limits the body as it is sent and as it is unpacked. ``seconds`` is the time for
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


@dataclass(slots=True)
class _Body:
    """One request's body on its way to the handler."""

    scope: Scope
    source: Receive
    limit: BodyLimit
    refuse: Refuse
    until: float | None = None
    """When the body, or its next part, must have arrived."""
    unpacker: "zlib._Decompress | None" = None
    seen: int = 0
    """Bytes received so far, unpacked."""
    over: bool = False

    async def receive(self) -> Message:
        """Return the next message; raises what ``refuse`` makes once the body is out of bounds."""
        if self.over:
            return await self.source()
        now = asyncio.get_running_loop().time()
        if self.until is None:
            self._check_headers()
        if self.until is None or self.limit.each_part:
            self.until = now + self.limit.seconds
        try:
            async with asyncio.timeout_at(self.until):
                message = await self.source()
        except TimeoutError as error:
            raise self.refuse(408, f"The body did not arrive within {self.limit.seconds:g} s.") from error
        if message["type"] != "http.request":
            self.over = True
            return message
        self.over = not message.get("more_body", False)
        return self._checked(message)

    def _check_headers(self) -> None:
        for name, value in self.scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > self.limit.bytes:
                raise self._too_long()
            if name == b"content-encoding" and (encoding := value.strip().lower()) not in _IDENTITY:
                if encoding != b"gzip" or not self.limit.gzip:
                    accepted = "gzip, or none" if self.limit.gzip else "none"
                    raise self.refuse(
                        415,
                        f"Content-Encoding {encoding.decode('latin-1')} is not supported; use {accepted}.",
                    )
                self.unpacker = zlib.decompressobj(_GZIP_HEADER)

    def _checked(self, message: Message) -> Message:
        part: bytes = message.get("body", b"")
        if self.unpacker is not None:
            part = self._unpack(self.unpacker, part)
            message = {**message, "body": part}
        self.seen += len(part)
        if self.seen > self.limit.bytes:
            raise self._too_long()
        return message

    def _unpack(self, stream: "zlib._Decompress", part: bytes) -> bytes:
        """Undo gzip, for at most one byte more than the limit."""
        most = self.limit.bytes - self.seen + 1
        try:
            unpacked = stream.decompress(part, most)
        except zlib.error as error:
            raise self.refuse(400, "The body is not valid gzip.") from error
        cut_off = self.over and len(unpacked) < most and not stream.eof
        if stream.unused_data or cut_off:
            raise self.refuse(400, "The body is not valid gzip.")
        return unpacked

    def _too_long(self) -> Exception:
        return self.refuse(
            413, f"The body is longer than {self.limit.bytes} bytes; send fewer or shorter texts a request."
        )
