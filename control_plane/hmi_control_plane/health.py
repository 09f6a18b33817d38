"""Liveness, readiness and metrics: for whoever runs the process, without a key."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from hmi_control_plane.readiness import Readiness


def build(readiness: Readiness, registry: CollectorRegistry | None) -> APIRouter:
    """Return ``/healthz``, ``/readyz`` and, of a registry that has no port of its own, ``/metrics``."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def live() -> dict[str, str]:
        """Answer as long as the process can."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def ready() -> dict[str, str]:
        """Answer 200 when requests should come here, else 503 with the reason."""
        await readiness.check()
        return {"status": "ok"}

    if registry is not None:

        @router.get("/metrics", include_in_schema=False)
        def metrics() -> Response:
            """Return all metrics in Prometheus' text format."""
            return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router
