"""Liveness, readiness and metrics: for whoever runs the process, without a key."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from sqlalchemy.exc import SQLAlchemyError

from hmi_api.errors import NotReady
from hmi_control_plane.storage import Database


def build(database: Database, registry: CollectorRegistry) -> APIRouter:
    """Return ``/healthz``, ``/readyz`` and ``/metrics``."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def live() -> dict[str, str]:
        """Answer as long as the process can."""
        return {"status": "ok"}

    @router.get("/readyz")
    def ready() -> dict[str, str]:
        """Answer 200 when the database does, else 503."""
        try:
            database.ping()
        except SQLAlchemyError as error:
            raise NotReady("DatabaseUnavailable", "The catalog database does not answer.") from error
        return {"status": "ok"}

    @router.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        """Return all metrics in Prometheus' text format."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router
