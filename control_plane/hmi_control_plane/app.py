"""The control plane's processes as applications: everything is made and wired here, and nowhere else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import SecretStr
from sqlalchemy import make_url
from starlette.concurrency import run_in_threadpool

from hmi_api.errors import ErrorBody
from hmi_api.security.request_body import BodyLimit, RequestBodyMiddleware
from hmi_api.servers import serving_metrics
from hmi_control_plane import admin_api, billing, gateway, internal_api, metering, tenant_api
from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.auth import Authenticator, CredentialMiddleware, Door, Guarded, require_token
from hmi_control_plane.catalog.artifacts import ArtifactGarbageCollector
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.migrate import upgrade
from hmi_control_plane.gateway import RuntimeNetwork
from hmi_control_plane.http import errors, health, openapi
from hmi_control_plane.http.health import Readiness
from hmi_control_plane.http.middleware import (
    FarewellMiddleware,
    HeadMiddleware,
    HttpMetrics,
    MetricsMiddleware,
    RequestIdMiddleware,
)
from hmi_control_plane.internal_api.changes import Changes
from hmi_control_plane.settings import Part, Settings
from hmi_control_plane.sweeper import Sweeper


@dataclass(frozen=True)
class Shared:
    """What every process has one of."""

    database: Database
    registry: CollectorRegistry
    authenticator: Authenticator
    readiness: Readiness


class ControlPlanePart:
    """The internal and admin APIs, with everyone's usage, prices and invoices, and the sweeper."""

    def __init__(self, settings: Settings, shared: Shared) -> None:
        if settings.admin_key is None:
            raise ValueError("the control plane needs an admin key")
        self._settings = settings
        self._admin_key: SecretStr = settings.admin_key
        self._shared = shared
        self._changes = Changes()
        self._callers = settings.caller_authenticator()
        self._files = ArtifactFiles(settings.artifacts)
        self._sweeper = Sweeper(
            shared.database,
            ArtifactGarbageCollector(shared.database, settings.artifacts),
            self._files,
            lost_after=timedelta(seconds=settings.runtime_lost_after_seconds),
            forgotten_after=timedelta(seconds=settings.runtime_forgotten_after_seconds),
            every_seconds=settings.sweep_every_seconds,
            notify=self._changes.notify,
        )

    @property
    def body_limits(self) -> Mapping[str, BodyLimit]:
        """Bounds of bodies by path prefix, where they are others than a tenant's."""
        settings = self._settings
        return {
            f"{internal_api.PREFIX}/": BodyLimit(settings.internal_body_limit_bytes, settings.body_seconds),
            f"{internal_api.ARTIFACTS_PREFIX}/": BodyLimit(
                settings.artifact_limit_bytes, settings.body_seconds, each_part=True
            ),
        }

    @property
    def guarded(self) -> tuple[Guarded, ...]:
        """Paths that need another credential than a tenant's; internal ones check roles route by route."""
        return (Guarded((f"{admin_api.PREFIX}/",), require_token(self._admin_key, "admin key")),)

    def include_routers(self, app: FastAPI) -> None:
        """Add the routes."""
        database, authenticator = self._shared.database, self._shared.authenticator
        admin = require_token(self._admin_key, "admin key")
        app.include_router(metering.build_admin_router(database, admin))
        app.include_router(billing.build_admin_router(database, admin, currency=self._settings.currency))
        app.include_router(admin_api.build(database, admin, authenticator.forget, self._changes.notify))
        app.include_router(
            internal_api.build(
                database,
                Door(self._callers),
                self._changes,
                self._files,
                artifact_limit_bytes=self._settings.artifact_limit_bytes,
                wait_limit_seconds=self._settings.desired_wait_limit_seconds,
            )
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sweep while the context lasts."""
        sweeping = asyncio.create_task(self._sweeper.run(), name="sweeper")
        try:
            yield
        finally:
            self._sweeper.stop()
            await sweeping
            await self._callers.close()


class GatewayPart:
    """Inference for tenants, and the way of its usage events from the spool to the catalog."""

    def __init__(
        self, settings: Settings, shared: Shared, runtimes: gateway.RuntimeNetwork | None = None
    ) -> None:
        self._shared = shared
        self._spool = metering.Spool(settings.usage_dir, limit_bytes=settings.usage_spool_limit_bytes)
        shared.readiness.require(self._spool.require_room)
        self._flusher = metering.Flusher(
            self._spool.segments,
            shared.database,
            metering.MeteringMetrics(shared.registry),
            interval=settings.usage_flush_seconds,
        )
        self._inference = gateway.Gateway(
            shared.database,
            self._spool,
            settings.token_source(),
            shared.registry,
            settings.gateway,
            network=runtimes,
        )

    @property
    def body_limits(self) -> Mapping[str, BodyLimit]:
        """No path of the gateway has bounds of its own."""
        return {}

    @property
    def guarded(self) -> tuple[Guarded, ...]:
        """No path of the gateway needs another credential than a tenant's."""
        return ()

    def include_routers(self, app: FastAPI) -> None:
        """Add the routes."""
        shared = self._shared
        app.include_router(
            gateway.build_router(
                self._inference,
                shared.database,
                shared.authenticator.tenant_from_key,
                shared.readiness.check,
            )
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take the spool and flush it while the context lasts, and once more at its end."""
        self._spool.open()
        flushing = asyncio.create_task(self._flusher.run(), name="usage-flusher")
        try:
            yield
        finally:
            await self._inference.close()
            self._flusher.stop()
            await flushing
            await self._spool.close()


_DESCRIPTION = (
    "Tenants call with their API key, administrators under /admin/v1 with the admin key, and HMI's own parts "
    "under /internal/v1 with the internal token; each as Authorization: Bearer."
)
_TENANTS = ("/classify", "/v1/", "/v2/models")
"""Where paths begin that need a tenant's key."""
_TITLES = {
    Part.SERVE: "HMI control plane",
    Part.CONTROL_PLANE: "HMI control plane",
    Part.GATEWAY: "HMI gateway",
}


def create_app(
    settings: Settings, part: Part = Part.SERVE, *, runtimes: RuntimeNetwork | None = None
) -> FastAPI:
    """Return the application of one process.

    Its lifespan must run: it migrates the database (where one process is everything, and if so set), takes
    the usage spool and runs the sweeper and the flusher. ``runtimes`` replaces the network to the runtimes.
    Its ``state.readiness`` is to be told when the process is asked to stop.
    """
    _make_database_folder(settings.database_url)
    shared = _make_shared(settings, part)
    parts: list[ControlPlanePart | GatewayPart] = []
    if part is not Part.GATEWAY:
        parts.append(ControlPlanePart(settings, shared))
    if part is not Part.CONTROL_PLANE:
        parts.append(GatewayPart(settings, shared, runtimes))
    app = FastAPI(
        title=_TITLES[part],
        version="1",
        description=_DESCRIPTION,
        lifespan=_lifespan(settings, part, shared, parts),
        openapi_url=None,  # served below, by who asks
        redirect_slashes=False,  # a redirect would answer before a key is asked for, and by the caller's Host
        responses={"default": {"model": ErrorBody, "description": "An error, in OpenAI's shape."}},
    )
    app.state.readiness = shared.readiness
    errors.install(app)
    # The last one added is the outermost.
    app.add_middleware(
        RequestBodyMiddleware,
        default=BodyLimit(settings.body_limit_bytes, settings.body_seconds, gzip=True),
        refuse=errors.refuse_body,
        limits={prefix: limit for one in parts for prefix, limit in one.body_limits.items()},
    )
    guarded = [Guarded(_TENANTS, shared.authenticator.tenant_from_key)]
    app.add_middleware(CredentialMiddleware, guarded=[*guarded, *(g for one in parts for g in one.guarded)])
    app.add_middleware(MetricsMiddleware, metrics=HttpMetrics(shared.registry))
    app.add_middleware(HeadMiddleware)
    app.add_middleware(RequestIdMiddleware)
    app.add_middleware(FarewellMiddleware, draining=shared.readiness.is_draining)
    # Routes are tried in this order, so that the gateway's, which are asked most, come first.
    for one in reversed(parts):
        one.include_routers(app)
    app.include_router(tenant_api.build(shared.database, shared.authenticator, currency=settings.currency))
    beside = shared.registry if settings.metrics_port is None else None
    app.include_router(health.build(shared.readiness, beside))
    app.include_router(
        openapi.build(app, shared.authenticator, settings.admin_key, needs_key=not settings.openapi_is_public)
    )
    return app


def _make_shared(settings: Settings, part: Part) -> Shared:
    database = Database(settings.database_url)
    patience = settings.without_database_seconds if part is Part.GATEWAY else 0.0
    return Shared(
        database=database,
        registry=CollectorRegistry(),
        authenticator=Authenticator(
            database,
            cache_seconds=settings.key_cache_seconds,
            without_database_seconds=settings.without_database_seconds,
        ),
        readiness=Readiness(database, without_database_seconds=patience),
    )


def _lifespan(
    settings: Settings, part: Part, shared: Shared, parts: list[ControlPlanePart | GatewayPart]
) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if part is Part.SERVE and settings.migrate_on_start:
            await run_in_threadpool(upgrade, settings.database_url)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(shared.database.close)
            stack.enter_context(
                serving_metrics(
                    settings.host, settings.metrics_port, lambda: generate_latest(shared.registry)
                )
            )
            # The gateway first: it goes last, when nothing writes the catalog any more but its flusher.
            for one in reversed(parts):
                await stack.enter_async_context(one.running())
            yield

    return lifespan


def _make_database_folder(url: str) -> None:
    parsed = make_url(url)
    if parsed.drivername.startswith("sqlite") and parsed.database not in {None, "", ":memory:"}:
        Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
