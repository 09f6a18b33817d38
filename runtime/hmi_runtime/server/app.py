"""The HTTP API of a runtime: inference for gateways, probes, metrics, statistics."""

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from hmi_api.errors import NotReady, error_body
from hmi_api.security.internal_auth import CallerAuthenticator, Role
from hmi_runtime.server.control_loop import ControlLoop
from hmi_runtime.server.infer import InferEndpoint
from hmi_runtime.server.loader import AdapterLoader
from hmi_runtime.server.metrics import RuntimeMetrics, RuntimeStats, resident_bytes, runtime_stats

_INTERNAL = "/internal/"


class InternalAuth:
    """ASGI middleware: only gateways may call ``/internal``; 401, 403 or 503 before a body is read."""

    def __init__(self, app: ASGIApp, authenticator: CallerAuthenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on if its caller is allowed."""
        if scope["type"] == "http" and scope["path"].startswith(_INTERNAL):
            error = await self._error_for(Headers(scope=scope).get("authorization", ""))
            if error is not None:
                await error(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _error_for(self, authorization: str) -> JSONResponse | None:
        scheme, _, token = authorization.partition(" ")
        try:
            caller = (
                await self._authenticator.authenticate(token.strip()) if scheme.lower() == "bearer" else None
            )
        except NotReady as error:
            body = error_body(error.message, "server_error", code=error.reason)
            return JSONResponse(body, 503, {"Retry-After": "1"})
        if caller is None:
            body = error_body(
                "The internal token is missing or wrong.", "authentication_error", code="InvalidToken"
            )
            return JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})
        if not caller.may_act_as((Role.GATEWAY,)):
            message = f"This call is not for callers in the role {caller.role}."
            return JSONResponse(error_body(message, "permission_error", code="RoleNotAllowed"), 403)
        return None


def render_metrics(loader: AdapterLoader, metrics: RuntimeMetrics) -> bytes:
    """Return all metrics in Prometheus' text format, after updating the gauges."""
    for entry in resident_bytes(loader):
        metrics.resident.labels(entry.kind, entry.tier).set(entry.bytes)
    metrics.queue.set(loader.pipeline.unanswered)
    metrics.adapters.set(loader.loaded_versions)
    for engine in loader.pipeline.engines():
        metrics.show_precision(engine.precision)
    return generate_latest(metrics.registry)


def build_app(
    loader: AdapterLoader,
    control: ControlLoop,
    metrics: RuntimeMetrics,
    *,
    metrics_here: bool = True,
    **options: Any,
) -> FastAPI:
    """Return the application, without ``InternalAuth``; ``options`` are FastAPI's.

    ``metrics_here``: serve ``/metrics`` too, if it has no separate port.
    """
    app = FastAPI(title="HMI runtime", openapi_url=None, **options)
    app.add_middleware(InferEndpoint, pipeline=loader.pipeline, metrics=metrics, on_error=_error_response)

    @app.get("/internal/v1/stats")
    def stats() -> RuntimeStats:
        """Return the bytes in use, by tenant, and the hit rates of the tables."""
        return runtime_stats(loader, metrics)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Liveness: the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str]:
        """Readiness: registered, and the first desired state is loaded."""
        if control.ready:
            return {"status": "ready"}
        response.status_code = 503
        return {"status": control.why_not_ready}

    if metrics_here:

        @app.get("/metrics")
        def read_metrics() -> Response:
            """Return the metrics for Prometheus."""
            return Response(render_metrics(loader, metrics), media_type=CONTENT_TYPE_LATEST)

    _add_error_handlers(app)
    return app


def body_error(status: int, message: str) -> StarletteHTTPException:
    """Return the error for a body that is too large or too slow; the connection is closed."""
    return StarletteHTTPException(status, message, headers={"Connection": "close"})


def _error_response(error: StarletteHTTPException | RequestValidationError) -> JSONResponse:
    """Return the OpenAI-shaped body that all HTTP APIs of HMI use."""
    if isinstance(error, StarletteHTTPException):
        kind = "authentication_error" if error.status_code == 401 else "invalid_request_error"
        return JSONResponse(error_body(str(error.detail), kind), error.status_code, error.headers)
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return JSONResponse(error_body(f"{place}: {first['msg']}", "invalid_request_error"), 400)


def _add_error_handlers(app: FastAPI) -> None:
    """Give every error the same body."""

    @app.exception_handler(StarletteHTTPException)
    async def on_http_error(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return _error_response(error)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return _error_response(error)
