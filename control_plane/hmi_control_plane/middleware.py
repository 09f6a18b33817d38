"""What every request passes through: an id, a limit on its body, and a farewell to connections that are kept.

Plain ASGI, since bodies may stream.
"""

import re
import secrets
from collections.abc import Callable, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hmi_api.errors import error_body

REQUEST_ID_HEADER = "X-Request-Id"
_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class RequestIdMiddleware:
    """Echo the caller's ``X-Request-Id``, or make one; handlers read it as ``request.state.request_id``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        # What could break a log line or a header is replaced, not echoed.
        request_id = given if _SAFE_REQUEST_ID.fullmatch(given) else secrets.token_hex(16)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault(REQUEST_ID_HEADER, request_id)
            await send(message)

        await self._app(scope, receive, send_with_id)


class FarewellMiddleware:
    """Close each kept connection with its answer while the process drains.

    Its next request then goes to another process, instead of meeting a connection that is just being closed.
    """

    def __init__(self, app: ASGIApp, *, draining: Callable[[], bool]) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""

        async def send_farewell(message: Message) -> None:
            if message["type"] == "http.response.start" and self._draining():
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_farewell if scope["type"] == "http" else send)


class BodyLimitMiddleware:
    """Refuse long bodies with 413: at once when announced, else as soon as the limit is passed.

    ``limits`` gives path prefixes their own limit in bytes; the longest that fits applies, else ``default``.
    """

    def __init__(self, app: ASGIApp, *, default: int, limits: Mapping[str, int] | None = None) -> None:
        self._app = app
        self._default = default
        self._limits = sorted((limits or {}).items(), key=lambda item: -len(item[0]))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit_for(scope["path"])
        announced = Headers(scope=scope).get("content-length", "")
        if announced.isdigit() and int(announced) > limit:
            body = error_body(_too_large(limit), "invalid_request_error", code="BodyTooLarge")
            await JSONResponse(body, 413)(scope, receive, send)
            return
        seen = 0

        async def receive_within_limit() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > limit:
                    # An HTTPException is the one error that FastAPI's body reader lets through as it is.
                    raise HTTPException(413, _too_large(limit))
            return message

        await self._app(scope, receive_within_limit, send)

    def _limit_for(self, path: str) -> int:
        return next((limit for prefix, limit in self._limits if path.startswith(prefix)), self._default)


def _too_large(limit: int) -> str:
    return f"The body is longer than {limit} bytes; send fewer or shorter texts a request."
