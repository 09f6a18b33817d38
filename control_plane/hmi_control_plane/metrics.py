"""Prometheus metrics of the control plane's HTTP side, on a registry of its own."""

import time

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
