"""Liveness, readiness and metrics: for whoever runs the process, without a key."""

import asyncio
import logging
import time
from collections.abc import Callable

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from hmi_api.errors import NotReady
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.migrate import is_behind

log = logging.getLogger(__name__)
_ANSWER_SECONDS = 2.0


class Readiness:
    """Ready while the database answers with a schema that is new enough, and the process is not stopping.

    Once it was so, ``without_database_seconds`` may pass without an answer: a gateway knows keys and routes.
    """

    def __init__(
        self,
        database: Database,
        *,
        without_database_seconds: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._without_database_seconds = without_database_seconds
        self._clock = clock
        self._answered_at: float | None = None
        self._new_enough = False
        self._draining = False
        self._asking: asyncio.Task[None] | None = None
        self._requirements: list[Callable[[], None]] = []

    def require(self, requirement: Callable[[], None]) -> None:
        """Be ready only while ``requirement`` does not raise NotReady; it is called in the event loop."""
        self._requirements.append(requirement)

    def start_draining(self) -> None:
        """Be ready no more: the process is about to stop."""
        self._draining = True

    def is_draining(self) -> bool:
        """Say whether the process is about to stop."""
        return self._draining

    async def check(self) -> None:
        """Raise NotReady unless requests should come here.

        Its reason is Draining, SchemaTooOld, DatabaseUnavailable, or that of a requirement.
        """
        if self._draining:
            raise NotReady("Draining", "This process is stopping.")
        for requirement in self._requirements:
            requirement()
        try:
            await self._ask()
        except (SQLAlchemyError, TimeoutError) as error:
            if not self._may_go_on():
                raise NotReady("DatabaseUnavailable", "The catalog database does not answer.") from error
        else:
            self._answered_at = self._clock()

    async def _ask(self) -> None:
        """Ask the database, one thread at a time however many probes come while it does not answer."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(run_in_threadpool(self._look))
        async with asyncio.timeout(_ANSWER_SECONDS):
            await asyncio.shield(self._asking)

    def _look(self) -> None:
        if self._new_enough:
            self._database.ping()
        elif is_behind(self._database):
            raise NotReady("SchemaTooOld", "The database waits for its migration; run migrate.")
        else:
            self._new_enough = True  # a schema never goes back

    def _may_go_on(self) -> bool:
        return (
            self._answered_at is not None
            and self._clock() - self._answered_at < self._without_database_seconds
        )


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
