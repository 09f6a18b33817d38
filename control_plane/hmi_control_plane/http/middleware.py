"""What every request passes through: an id, metrics, HEAD as GET without a body, the end of kept connections.

Plain ASGI, since bodies may stream.
"""

import re
import secrets
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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


class HeadMiddleware:
    """Answer HEAD wherever GET is answered: with GET's status and headers, without its body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, send_without_body)


_UNMATCHED = "unmatched"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


class HttpMetrics:
    """Requests counted and timed by route; routes are templates, so that their number is bounded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "hmi_requests_total", "Requests answered.", ["route", "code"], registry=registry
        )
        self.seconds = Histogram(
            "hmi_request_seconds",
            "Seconds until the end of the answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )


class MetricsMiddleware:
    """Observe every request under the template of the route that answered it."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        code = "500"  # what the server answers when the application raises

        async def send_observed(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        finally:
            route = _route_template(scope)
            self._metrics.requests.labels(route, code).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)


def _route_template(scope: Scope) -> str:
    """Return the path template of the route that answered, prefixes of its routers included.

    A route of an included router may know only its own part. The rest is the part of the path that is left
    when the route's own, filled in, is taken off its end; being a router's prefix, it holds no parameters.
    """
    own: str | None = getattr(scope.get("route"), "path_format", None)
    if own is None:
        return _UNMATCHED
    filled = own.format_map(scope.get("path_params", {}))
    path: str = scope["path"]
    return path.removesuffix(filled) + own if path.endswith(filled) else own
