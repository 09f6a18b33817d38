"""Observability of the operator: probes, Prometheus metrics and the format of log records."""

import json
import logging
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Literal

import kopf
from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from hmi_api.servers import listening_socket
from hmi_operator.ports import ResourceRef

Probe = Callable[[], str | None]
"""Returns a problem, or None."""


@asynccontextmanager
async def serve_application(
    application: web.Application, host: str, port: int, *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """Serve an application while the block runs; yields the port. Raises ``OSError``."""
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        await web.SockSite(runner, listening_socket(host, port), ssl_context=tls).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def serve_probes(
    host: str, port: int, *, alive: Probe, ready: Probe, registry: CollectorRegistry
) -> AsyncIterator[int]:
    """Serve ``/healthz``, ``/readyz`` and ``/metrics`` while the block runs; yields the port."""

    def answering(probe: Probe) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(_: web.Request) -> web.Response:
            problem = probe()
            return web.Response(text=problem or "ok", status=503 if problem else 200)

        return answer

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", answering(alive))
    app.router.add_get("/readyz", answering(ready))
    app.router.add_get("/metrics", metrics)
    async with serve_application(app, host, port) as listening:
        yield listening


_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class OperatorMetrics:
    """The operator's metrics, on a registry of their own; their labels are few and bounded."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._seconds = Histogram(
            "hmi_reconcile_seconds",
            "Seconds that one reconciliation took.",
            ["kind"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._failures = Counter(
            "hmi_reconcile_failures_total", "Reconciliations that failed.", ["kind"], registry=self.registry
        )
        self._requests = Counter(
            "hmi_kube_requests_total",
            "Requests to the API server, watches not counted; code 0: no answer.",
            ["method", "kind", "code"],
            registry=self.registry,
        )
        self._leader = Gauge(
            "hmi_operator_leader", "1 if this replica is the leader.", registry=self.registry
        )
        self._queue = Gauge(
            "hmi_reconcile_queue_length", "Resources in the work queue.", registry=self.registry
        )
        self._resources = Gauge(
            "hmi_operator_resources", "Domains and TaskAdapters in the cache.", registry=self.registry
        )

    def set_gauges(
        self, *, leader: Callable[[], bool], queue: Callable[[], int], resources: Callable[[], int]
    ) -> None:
        """Set the functions from which the gauges are read at every scrape."""
        self._leader.set_function(leader)
        self._queue.set_function(queue)
        self._resources.set_function(resources)

    def record_reconciliation(self, ref: ResourceRef, seconds: float, succeeded: bool) -> None:
        """Count a reconciliation."""
        self._seconds.labels(ref.kind).observe(seconds)
        if not succeeded:
            self._failures.labels(ref.kind).inc()

    def record_request(self, method: str, kind: str, code: int) -> None:
        """Count a request to the API server."""
        self._requests.labels(method, kind, code).inc()


_QUIET = ("httpx", "httpcore", "kopf", "aiohttp.access")


class JsonFormatter(logging.Formatter):
    """Writes a record as one JSON object on one line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logging(form: Literal["text", "json"], level: str) -> None:
    """Log to standard error; of libraries only warnings and errors.

    kopf logs each rejected admission as an error of its handler, which is no error of the operator.
    """
    handler = logging.StreamHandler(sys.stderr)
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if form == "json" else text)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("kopf.objects").addFilter(_is_no_refusal)


def _is_no_refusal(_: logging.LogRecord) -> bool:
    """Whether a record was logged outside an ``except kopf.AdmissionError`` block."""
    return not isinstance(sys.exception(), kopf.AdmissionError)
