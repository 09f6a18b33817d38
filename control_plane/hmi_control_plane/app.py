"""The control plane as one application: everything is made and wired here, and nowhere else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from sqlalchemy import make_url
from starlette.concurrency import run_in_threadpool

from hmi_api.errors import ErrorBody
from hmi_control_plane import admin_api, billing, errors, gateway, health, internal_api, metering
from hmi_control_plane.auth import Authenticator, require_token
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


@dataclass(frozen=True)
class _Parts:
    """What lives as long as the application."""

    database: Database
    registry: CollectorRegistry
    changes: Changes
    authenticator: Authenticator
    sweeper: Sweeper
    spool: metering.Spool
    flusher: metering.Flusher
    inference: gateway.Gateway


def create_app(settings: Settings, *, runtimes: httpx.AsyncBaseTransport | None = None) -> FastAPI:
    """Return the control plane.

    Its lifespan must run: it migrates the database (if so set), takes the usage spool and runs the sweeper
    and the flusher. ``runtimes`` replaces the network to the runtimes.
    """
    _make_database_folder(settings.database_url)
    parts = _make_parts(settings, runtimes)
    app = FastAPI(
        title="HMI control plane",
        version="1",
        description=_DESCRIPTION,
        lifespan=_lifespan(settings, parts),
        responses={"default": {"model": ErrorBody, "description": "An error, in OpenAI's shape."}},
    )
    errors.install(app)
    # The last one added is the outermost.
    app.add_middleware(
        BodyLimitMiddleware,
        default=settings.body_limit_bytes,
        limits={f"{internal_api.PREFIX}/": settings.internal_body_limit_bytes},
    )
    app.add_middleware(MetricsMiddleware, metrics=HttpMetrics(parts.registry))
    app.add_middleware(RequestIdMiddleware)
    _include_routers(app, settings, parts)
    return app


def _make_parts(settings: Settings, runtimes: httpx.AsyncBaseTransport | None) -> _Parts:
    database = Database(settings.database_url)
    registry = CollectorRegistry()
    changes = Changes()
    spool = metering.Spool(settings.usage_dir)
    return _Parts(
        database=database,
        registry=registry,
        changes=changes,
        authenticator=Authenticator(database, cache_seconds=settings.key_cache_seconds),
        sweeper=Sweeper(
            database,
            ArtifactEraser(database, settings.artifacts),
            lost_after=timedelta(seconds=settings.runtime_lost_after_seconds),
            forgotten_after=timedelta(seconds=settings.runtime_forgotten_after_seconds),
            every_seconds=settings.sweep_every_seconds,
            notify=changes.notify,
        ),
        spool=spool,
        flusher=metering.Flusher(
            spool.segments,
            database,
            metering.MeteringMetrics(registry),
            interval=settings.usage_flush_seconds,
        ),
        inference=gateway.Gateway(
            database, spool, settings.internal_token, registry, settings.gateway, transport=runtimes
        ),
    )


def _lifespan(
    settings: Settings, parts: _Parts
) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if settings.migrate_on_start:
            await run_in_threadpool(upgrade, settings.database_url)
        parts.spool.open()
        flushing = asyncio.create_task(parts.flusher.run(), name="usage-flusher")
        sweeping = asyncio.create_task(parts.sweeper.run(), name="sweeper")
        try:
            yield
        finally:
            parts.sweeper.stop()
            await sweeping
            await parts.inference.close()
            parts.flusher.stop()
            await flushing
            await parts.spool.close()
            parts.database.close()

    return lifespan


def _include_routers(app: FastAPI, settings: Settings, parts: _Parts) -> None:
    database, tenant = parts.database, parts.authenticator.tenant_from_key
    admin = require_token(settings.admin_key, "admin key")
    app.include_router(gateway.build_router(parts.inference, database, tenant))
    app.include_router(metering.build_router(database, tenant, admin))
    app.include_router(billing.build_router(database, tenant, admin, currency=settings.currency))
    app.include_router(admin_api.build(database, admin, parts.authenticator.forget))
    app.include_router(
        internal_api.build(
            database,
            require_token(settings.internal_token, "internal token"),
            parts.changes,
            wait_limit_seconds=settings.desired_wait_limit_seconds,
        )
    )
    app.include_router(health.build(database, parts.registry))


def _make_database_folder(url: str) -> None:
    parsed = make_url(url)
    if parsed.drivername.startswith("sqlite") and parsed.database not in {None, "", ":memory:"}:
        Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
