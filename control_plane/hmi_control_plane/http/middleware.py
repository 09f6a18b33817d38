"""What every request passes through: an id, metrics, HEAD as GET without a body, the end of kept connections.

Plain ASGI, since bodies may stream.
"""

import re
import secrets
import time
from collections.abc import Callable

from asgi_correlation_id import CorrelationIdMiddleware
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID_HEADER = "X-Request-Id"
_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_UNMATCHED = "unmatched"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


def request_id_middleware(app: ASGIApp) -> ASGIApp:
    """Return ``app`` with the caller's ``X-Request-Id``, or a new one, in its responses and log records.

    An id that could break a log line or a header is replaced.
    """
    return CorrelationIdMiddleware(
        app,
        header_name=REQUEST_ID_HEADER,
        update_request_header=False,
        generator=lambda: secrets.token_hex(16),
        validator=lambda given: _SAFE_REQUEST_ID.fullmatch(given) is not None,
        transformer=None,
    )


class ConnectionCloseMiddleware:
    """Close kept connections after their next response while the process drains.

    The client's next request then goes to another process, not to a connection that is about to be closed.
    """

    def __init__(self, app: ASGIApp, *, draining: Callable[[], bool]) -> None:
        self._app = app
        self._draining = draining

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start" and self._draining():
                MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        await self._app(scope, receive, send_and_close if scope["type"] == "http" else send)


class HeadMiddleware:
    """Answer HEAD on every path with GET: the same status and headers, without a body."""

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


class HttpMetrics:
    """Number and duration of requests by route template, so that the number of label values is bounded."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "hmi_requests_total", "Requests answered.", ["route", "code"], registry=registry
        )
        self.seconds = Histogram(
            "hmi_request_seconds",
            "Seconds until the end of the response.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )


class MetricsMiddleware:
    """Record every request under the template of the route that handled it."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        code = "500"  # the server's response when the application raises

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
    """Return the path template of the matched route, including the prefixes of its routers.

    A route of an included router may know only its own part of the path. What precedes that part is the
    router's prefix, which has no parameters.
    """
    own: str | None = getattr(scope.get("route"), "path_format", None)
    if own is None:
        return _UNMATCHED
    filled = own.format_map(scope.get("path_params", {}))
    path: str = scope["path"]
    return path.removesuffix(filled) + own if path.endswith(filled) else own
