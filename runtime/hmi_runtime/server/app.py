"""The HTTP face of a runtime: inference for gateways, probes, metrics, stats."""

import asyncio
import time
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException

from hmi_api.errors import error_body
from hmi_api.internal.inference import InferReply, InferRequest
from hmi_runtime.server.control_loop import ControlLoop
from hmi_runtime.server.metrics import RuntimeMetrics
from hmi_runtime.server.residency import Residency
from hmi_runtime.server.stats import RuntimeStats, resident_bytes, runtime_stats


def rendered_metrics(residency: Residency, metrics: RuntimeMetrics) -> bytes:
    """Return all metrics in Prometheus' text format, with the gauges as they are now."""
    for entry in resident_bytes(residency):
        metrics.resident.labels(entry.kind, entry.tier).set(entry.bytes)
    metrics.queue.set(residency.pipeline.unanswered)
    metrics.adapters.set(residency.registered)
    return generate_latest(metrics.registry)


def build_app(
    residency: Residency,
    control: ControlLoop,
    metrics: RuntimeMetrics,
    *,
    metrics_here: bool = True,
    **options: Any,
) -> FastAPI:
    """Return the application; ``options`` are FastAPI's. Who may call is decided before it, at the door.

    ``metrics_here`` says whether it serves ``/metrics`` too, where they have no port of their own.
    """
    app = FastAPI(title="HMI runtime", openapi_url=None, **options)

    @app.post("/internal/v1/infer")
    async def infer(request: InferRequest) -> InferReply:
        """Answer the rows of a request; each row succeeds or fails alone."""
        started = time.monotonic()
        results = await asyncio.wrap_future(
            residency.pipeline.submit(request.rows, tenant_id=request.tenant_id)
        )
        seconds = time.monotonic() - started
        metrics.requests.labels("infer", "200").inc()
        metrics.request_seconds.observe(seconds)
        return InferReply(results=results, timings_ms={"total": seconds * 1000})

    @app.get("/internal/v1/stats")
    def stats() -> RuntimeStats:
        """Tell what is resident, for whom, and how the tables hit."""
        return runtime_stats(residency, metrics)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Live: the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz(response: Response) -> dict[str, str]:
        """Ready: registered, and what was wanted first is loaded."""
        if control.ready:
            return {"status": "ready"}
        response.status_code = 503
        return {"status": control.why_not_ready}

    if metrics_here:

        @app.get("/metrics")
        def read_metrics() -> Response:
            """Metrics for Prometheus."""
            return Response(rendered_metrics(residency, metrics), media_type=CONTENT_TYPE_LATEST)

    _answer_errors_in_one_shape(app)
    return app


def refuse_body(status: int, message: str) -> StarletteHTTPException:
    """Return what the reader of a body raises; the rest of the body is not waited for."""
    return StarletteHTTPException(status, message, headers={"Connection": "close"})


def _answer_errors_in_one_shape(app: FastAPI) -> None:
    """Give every error the OpenAI-shaped body that the whole system uses."""

    @app.exception_handler(StarletteHTTPException)
    async def on_http_error(_: Request, error: StarletteHTTPException) -> JSONResponse:
        kind = "authentication_error" if error.status_code == 401 else "invalid_request_error"
        return JSONResponse(error_body(str(error.detail), kind), error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return JSONResponse(error_body(f"{place}: {first['msg']}", "invalid_request_error"), 400)
