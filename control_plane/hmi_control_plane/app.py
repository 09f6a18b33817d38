"""The control plane as one application: everything is made and wired here, and nowhere else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from sqlalchemy import make_url
from starlette.concurrency import run_in_threadpool

from hmi_control_plane import admin_api, errors, health, internal_api
from hmi_control_plane.auth import Authenticator
from hmi_control_plane.catalog.artifacts import ArtifactEraser
from hmi_control_plane.internal_api.changes import Changes
from hmi_control_plane.metrics import HttpMetrics, MetricsMiddleware
from hmi_control_plane.middleware import BodyLimitMiddleware, RequestIdMiddleware
from hmi_control_plane.settings import Settings
from hmi_control_plane.storage import Database
from hmi_control_plane.storage.migrate import upgrade
from hmi_control_plane.sweeper import Sweeper

_DESCRIPTION = (
    "Tenants call with their API key, administrators under /admin/v1 with the admin key, and HMI's own parts "
    "under /internal/v1 with the internal token; each as Authorization: Bearer."
)


def create_app(settings: Settings) -> FastAPI:
    """Return the control plane. Its lifespan migrates the database (if so set) and runs the sweeper."""
    _make_database_folder(settings.database_url)
    database = Database(settings.database_url)
    registry = CollectorRegistry()
    changes = Changes()
    authenticator = Authenticator(database, cache_seconds=settings.key_cache_seconds)
    sweeper = Sweeper(
        database,
        ArtifactEraser(database, settings.artifacts),
        lost_after=timedelta(seconds=settings.runtime_lost_after_seconds),
        forgotten_after=timedelta(seconds=settings.runtime_forgotten_after_seconds),
        every_seconds=settings.sweep_every_seconds,
        notify=changes.notify,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if settings.migrate_on_start:
            await run_in_threadpool(upgrade, settings.database_url)
        sweeping = asyncio.create_task(sweeper.run(), name="sweeper")
        try:
            yield
        finally:
            sweeper.stop()
            await sweeping
            database.close()

    app = FastAPI(title="HMI control plane", version="1", description=_DESCRIPTION, lifespan=lifespan)
    errors.install(app)
    # The last one added is the outermost.
    app.add_middleware(
        BodyLimitMiddleware,
        default=settings.body_limit_bytes,
        limits={f"{internal_api.PREFIX}/": settings.internal_body_limit_bytes},
    )
    app.add_middleware(MetricsMiddleware, metrics=HttpMetrics(registry))
    app.add_middleware(RequestIdMiddleware)
    app.include_router(health.build(database, registry))
    app.include_router(
        internal_api.build(
            database,
            settings.internal_token,
            changes,
            wait_limit_seconds=settings.desired_wait_limit_seconds,
        )
    )
    app.include_router(admin_api.build(database, settings.admin_key, authenticator.forget))
    return app


def _make_database_folder(url: str) -> None:
    parsed = make_url(url)
    if parsed.drivername.startswith("sqlite") and parsed.database not in {None, "", ":memory:"}:
        Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
