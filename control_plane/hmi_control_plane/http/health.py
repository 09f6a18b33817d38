"""Liveness, readiness and metrics endpoints, which need no key."""

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
PING_TIMEOUT_SECONDS = 2.0
"""How long a probe waits for the database."""


class Readiness:
    """Whether this process should get requests: the database answers, its schema is new enough, no shutdown.

    After the first success the process stays ready for ``without_database_seconds`` without the database: a
    gateway can work with the keys and routes that it has cached.
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
        self._last_answer_at: float | None = None
        self._schema_is_new_enough = False
        self._draining = False
        self._ping: asyncio.Task[None] | None = None
        self._requirements: list[Callable[[], None]] = []

    def require(self, requirement: Callable[[], None]) -> None:
        """Add a check, called in the event loop, that raises NotReady while the process is not ready."""
        self._requirements.append(requirement)

    def start_draining(self) -> None:
        """Report not ready from now on: the process is about to stop."""
        self._draining = True

    def is_draining(self) -> bool:
        """Return whether the process is about to stop."""
        return self._draining

    async def check(self) -> None:
        """Raise NotReady if this process should not get requests.

        The reason is Draining, SchemaTooOld, DatabaseUnavailable, or that of a requirement.
        """
        if self._draining:
            raise NotReady("Draining", "This process is stopping.")
        for requirement in self._requirements:
            requirement()
        try:
            await self._ping_database()
        except (SQLAlchemyError, TimeoutError) as error:
            if not self._may_go_without_database():
                raise NotReady("DatabaseUnavailable", "The catalog database does not answer.") from error
        else:
            self._last_answer_at = self._clock()

    async def _ping_database(self) -> None:
        """Query the database from one thread at a time, however many probes wait for it."""
        if self._ping is None or self._ping.done():
            self._ping = asyncio.create_task(run_in_threadpool(self._check_database))
        async with asyncio.timeout(PING_TIMEOUT_SECONDS):
            await asyncio.shield(self._ping)

    def _check_database(self) -> None:
        if self._schema_is_new_enough:
            self._database.ping()
        elif is_behind(self._database):
            raise NotReady("SchemaTooOld", "The database waits for its migration; run migrate.")
        else:
            self._schema_is_new_enough = True  # a schema is never downgraded

    def _may_go_without_database(self) -> bool:
        return (
            self._last_answer_at is not None
            and self._clock() - self._last_answer_at < self._without_database_seconds
        )


def build_router(readiness: Readiness, registry: CollectorRegistry | None) -> APIRouter:
    """Return ``/healthz``, ``/readyz`` and, unless ``registry`` is None, ``/metrics``."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def live() -> dict[str, str]:
        """Answer 200 while the process runs."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def ready() -> dict[str, str]:
        """Answer 200 when this process should get requests, else 503 with the reason."""
        await readiness.check()
        return {"status": "ok"}

    if registry is not None:

        @router.get("/metrics", include_in_schema=False)
        def metrics() -> Response:
            """Return all metrics in Prometheus' text format."""
            return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router
