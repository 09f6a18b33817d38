"""Refuses bodies that are larger than anything a gateway sends, before they are read into memory."""

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hmi_api.errors import error_body


class _TooLarge(Exception):
    pass


class BodyLimit:
    """ASGI middleware: 413 for a body over ``limit`` bytes, whether its length was declared or not."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on while its body stays within the limit."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise _TooLarge
            return message

        try:
            declared = dict(scope["headers"]).get(b"content-length", b"0")
            if int(declared) > self._limit:
                raise _TooLarge
            await self._app(scope, counted, send)
        except _TooLarge:
            body = error_body(f"The body is larger than {self._limit} bytes.", "invalid_request_error")
            await JSONResponse(body, 413, {"Connection": "close"})(scope, receive, send)
