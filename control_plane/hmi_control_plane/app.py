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
from hmi_control_plane import gateway, metering
from hmi_control_plane.api import admin as admin_api
from hmi_control_plane.api import billing as billing_api
from hmi_control_plane.api import internal as internal_api
from hmi_control_plane.api import tenant as tenant_api
from hmi_control_plane.api import usage as usage_api
from hmi_control_plane.api.internal.runtimes import ChangeSignal
from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.auth import Authenticator, CredentialMiddleware, GuardedPaths, RoleGuard, require_token
from hmi_control_plane.catalog.artifacts import ArtifactGarbageCollector
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.migrate import upgrade
from hmi_control_plane.gateway import RuntimeNetwork
from hmi_control_plane.http import errors, health, openapi
from hmi_control_plane.http.health import Readiness
from hmi_control_plane.http.middleware import (
    ConnectionCloseMiddleware,
    HeadMiddleware,
    HttpMetrics,
    MetricsMiddleware,
    request_id_middleware,
)
from hmi_control_plane.settings import Part, Settings
from hmi_control_plane.sweeper import Sweeper


@dataclass(frozen=True)
class SharedServices:
    """The objects that both parts use."""

    database: Database
    registry: CollectorRegistry
    authenticator: Authenticator
    readiness: Readiness


class ControlPlanePart:
    """The internal and admin APIs, all tenants' usage, prices and invoices, and the sweeper."""

    def __init__(self, settings: Settings, shared: SharedServices) -> None:
        if settings.admin_key is None:
            raise ValueError("the control plane needs an admin key")
        self._settings = settings
        self._admin_key: SecretStr = settings.admin_key
        self._shared = shared
        self._changes = ChangeSignal()
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
        """Limits of request bodies by path prefix, where they differ from a tenant's."""
        settings = self._settings
        return {
            f"{internal_api.PREFIX}/": BodyLimit(settings.internal_body_limit_bytes, settings.body_seconds),
            f"{internal_api.ARTIFACTS_PREFIX}/": BodyLimit(
                settings.artifact_limit_bytes, settings.body_seconds, each_part=True
            ),
        }

    @property
    def guarded(self) -> tuple[GuardedPaths, ...]:
        """Paths that need the admin key; routes of the internal API check roles themselves."""
        return (GuardedPaths((f"{admin_api.PREFIX}/",), require_token(self._admin_key, "admin key")),)

    def include_routers(self, app: FastAPI) -> None:
        """Add the routes."""
        database, authenticator = self._shared.database, self._shared.authenticator
        admin = require_token(self._admin_key, "admin key")
        app.include_router(usage_api.build_admin_router(database, admin))
        app.include_router(billing_api.build_admin_router(database, admin, currency=self._settings.currency))
        app.include_router(admin_api.build(database, admin, authenticator.forget, self._changes.notify))
        app.include_router(
            internal_api.build(
                database,
                RoleGuard(self._callers),
                self._changes,
                self._files,
                artifact_limit_bytes=self._settings.artifact_limit_bytes,
                wait_limit_seconds=self._settings.desired_wait_limit_seconds,
            )
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the sweeper while the context is open."""
        sweeping = asyncio.create_task(self._sweeper.run(), name="sweeper")
        try:
            yield
        finally:
            self._sweeper.stop()
            await sweeping
            await self._callers.close()


class GatewayPart:
    """Inference for tenants, and the flusher that moves usage events from the spool to the catalog."""

    def __init__(
        self, settings: Settings, shared: SharedServices, runtimes: gateway.RuntimeNetwork | None = None
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
        """None: the gateway uses the default limits."""
        return {}

    @property
    def guarded(self) -> tuple[GuardedPaths, ...]:
        """None: all paths of the gateway use the tenant's key."""
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
        """Open the spool and run the flusher while the context is open; flush once more at the end."""
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
    "Tenants use their API key, administrators the admin key (/admin/v1), and HMI's own components the "
    "internal token (/internal/v1), each as Authorization: Bearer."
)
_TENANTS = ("/classify", "/v1/", "/v2/models")
"""Prefixes of paths that need a tenant's key."""
_TITLES = {
    Part.SERVE: "HMI control plane",
    Part.CONTROL_PLANE: "HMI control plane",
    Part.GATEWAY: "HMI gateway",
}


def create_app(
    settings: Settings, part: Part = Part.SERVE, *, runtimes: RuntimeNetwork | None = None
) -> FastAPI:
    """Return the application of one process.

    Its lifespan must run: it migrates the database (only with ``Part.SERVE``, if ``migrate_on_start``), opens
    the usage spool and runs the sweeper and the flusher. ``runtimes`` replaces the connections to the
    runtimes. Call ``state.readiness.start_draining`` when the process is asked to stop.
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
        openapi_url=None,  # served below, by caller
        redirect_slashes=False,  # a redirect would be sent before authentication, and to the caller's Host
        responses={"default": {"model": ErrorBody, "description": "An error, in OpenAI's format."}},
    )
    app.state.readiness = shared.readiness
    errors.install_error_handlers(app)
    # The middleware that is added last is the outermost.
    app.add_middleware(
        RequestBodyMiddleware,
        default=BodyLimit(settings.body_limit_bytes, settings.body_seconds, gzip=True),
        refuse=errors.refuse_body,
        limits={prefix: limit for one in parts for prefix, limit in one.body_limits.items()},
    )
    guarded = [GuardedPaths(_TENANTS, shared.authenticator.tenant_from_key)]
    app.add_middleware(CredentialMiddleware, guarded=[*guarded, *(g for one in parts for g in one.guarded)])
    app.add_middleware(MetricsMiddleware, metrics=HttpMetrics(shared.registry))
    app.add_middleware(HeadMiddleware)
    app.add_middleware(request_id_middleware)
    app.add_middleware(ConnectionCloseMiddleware, draining=shared.readiness.is_draining)
    # Routes are matched in this order: the gateway's, which get most requests, come first.
    for one in reversed(parts):
        one.include_routers(app)
    app.include_router(
        tenant_api.build_router(shared.database, shared.authenticator, currency=settings.currency)
    )
    registry = shared.registry if settings.metrics_port is None else None
    app.include_router(health.build_router(shared.readiness, registry))
    app.include_router(
        openapi.build_router(
            app, shared.authenticator, settings.admin_key, needs_key=not settings.openapi_is_public
        )
    )
    return app


def _make_shared(settings: Settings, part: Part) -> SharedServices:
    database = Database(settings.database_url)
    without_database_seconds = settings.without_database_seconds if part is Part.GATEWAY else 0.0
    return SharedServices(
        database=database,
        registry=CollectorRegistry(),
        authenticator=Authenticator(
            database,
            cache_seconds=settings.key_cache_seconds,
            without_database_seconds=settings.without_database_seconds,
        ),
        readiness=Readiness(database, without_database_seconds=without_database_seconds),
    )


def _lifespan(
    settings: Settings, part: Part, shared: SharedServices, parts: list[ControlPlanePart | GatewayPart]
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
            # The gateway starts first and stops last, when only its flusher still writes to the catalog.
            for one in reversed(parts):
                await stack.enter_async_context(one.running())
            yield

    return lifespan


def _make_database_folder(url: str) -> None:
    parsed = make_url(url)
    if parsed.drivername.startswith("sqlite") and parsed.database not in {None, "", ":memory:"}:
        Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
