"""The control plane's processes as applications: all objects are created and connected here."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType

from fastapi import APIRouter, Depends, FastAPI
from prometheus_client import CollectorRegistry, Counter, generate_latest
from sqlalchemy import make_url
from starlette.concurrency import run_in_threadpool

from hmi_api.errors import ErrorBody, NotReady
from hmi_api.security.request_body import BodyLimit, RequestBodyMiddleware
from hmi_api.servers import serving_metrics
from hmi_control_plane.api import admin as admin_api
from hmi_control_plane.api import billing as billing_api
from hmi_control_plane.api import internal as internal_api
from hmi_control_plane.api import usage as usage_api
from hmi_control_plane.api.admin import catalog as admin_catalog
from hmi_control_plane.api.admin import tenants as admin_tenants
from hmi_control_plane.api.internal import artifacts, resources, runs
from hmi_control_plane.api.internal import runtimes as internal_runtimes
from hmi_control_plane.api.internal.runtimes import ChangeSignal
from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.auth.authenticator import Authenticator
from hmi_control_plane.auth.guards import CredentialMiddleware, GuardedPaths, RoleGuard, require_token
from hmi_control_plane.catalog.artifacts import ArtifactGarbageCollector
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.migrate import upgrade
from hmi_control_plane.gateway.classify import add_classify
from hmi_control_plane.gateway.dispatch import Dispatcher
from hmi_control_plane.gateway.inference import GatewayMetrics, Inference
from hmi_control_plane.gateway.models import add_models
from hmi_control_plane.gateway.open_inference import build_open_inference
from hmi_control_plane.gateway.requests import InferenceRoute
from hmi_control_plane.gateway.routes import RoutingTable, catalog_reader
from hmi_control_plane.gateway.runtime_client import HttpConnections, RuntimeClient, RuntimeNetwork
from hmi_control_plane.http import errors, health, openapi
from hmi_control_plane.http.health import Readiness
from hmi_control_plane.http.middleware import (
    ConnectionCloseMiddleware,
    HeadMiddleware,
    HttpMetrics,
    MetricsMiddleware,
    request_id_middleware,
)
from hmi_control_plane.metering.flusher import Flusher, MeteringMetrics
from hmi_control_plane.metering.spool import Spool
from hmi_control_plane.settings import Part, Settings
from hmi_control_plane.sweeper import Sweeper
from hmi_control_plane.window_counts.merging import WindowCountMerger


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
        self._shared = shared
        seconds = settings.body_seconds
        self.body_limits = {
            f"{internal_api.PREFIX}/": BodyLimit(settings.internal_body_limit_bytes, seconds),
            f"{internal_api.ARTIFACTS_PREFIX}/": BodyLimit(
                settings.artifact_limit_bytes, seconds, each_part=True
            ),
        }
        """By path prefix, where the limit differs from a tenant's."""
        self._require_admin = require_token(settings.admin_key, "admin key")
        # Routes of the internal API check roles themselves.
        self.guarded = (GuardedPaths((f"{admin_api.PREFIX}/",), self._require_admin),)
        self._changes = ChangeSignal()
        self._callers = settings.caller_authenticator()
        self._files = ArtifactFiles(settings.artifacts)
        cut = Counter(
            "hmi_windows_cut_total",
            "Window counts deleted because a tenant's day or a Domain had too many.",
            registry=shared.registry,
        )
        self._windows = WindowCountMerger(shared.database, settings.window_counts, on_cut=cut.inc)
        self._sweeper = Sweeper(
            shared.database,
            ArtifactGarbageCollector(shared.database, settings.artifacts),
            self._files,
            lost_after=timedelta(seconds=settings.runtime_lost_after_seconds),
            forgotten_after=timedelta(seconds=settings.runtime_forgotten_after_seconds),
            every_seconds=settings.sweep_every_seconds,
            notify=self._changes.notify,
            window_counts=self._windows,
        )

    def include_routers(self, app: FastAPI) -> None:
        """Add the routes."""
        settings, database, notify = self._settings, self._shared.database, self._changes.notify
        admin = APIRouter(
            prefix=admin_api.PREFIX, tags=["admin"], dependencies=[Depends(self._require_admin)]
        )
        admin.include_router(admin_tenants.build(database, self._shared.authenticator.forget))
        admin.include_router(admin_catalog.build(database, notify))
        guard, changes, files = RoleGuard(self._callers), self._changes, self._files
        internal = APIRouter(prefix=internal_api.PREFIX, tags=["internal"])
        internal.include_router(resources.build(database, guard, changes, files))
        internal.include_router(runs.build(database, guard, changes, self._windows))
        internal.include_router(
            internal_runtimes.build(
                database, guard, changes, wait_limit_seconds=settings.desired_wait_limit_seconds
            )
        )
        internal.include_router(
            artifacts.build(database, guard, files, limit_bytes=settings.artifact_limit_bytes)
        )
        app.include_router(usage_api.build_admin_router(database, self._require_admin))
        app.include_router(
            billing_api.build_admin_router(database, self._require_admin, currency=settings.currency)
        )
        app.include_router(admin)
        app.include_router(internal)

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

    body_limits: Mapping[str, BodyLimit] = MappingProxyType({})
    guarded: tuple[GuardedPaths, ...] = ()

    def __init__(
        self, settings: Settings, shared: SharedServices, runtimes: RuntimeNetwork | None = None
    ) -> None:
        self._shared = shared
        self._spool = Spool(settings.usage_dir, limit_bytes=settings.usage_spool_limit_bytes)
        shared.readiness.require(self._spool.require_room)
        self._flusher = Flusher(
            self._spool.segments,
            shared.database,
            MeteringMetrics(shared.registry),
            interval=settings.usage_flush_seconds,
        )
        limits = settings.gateway
        self._client = RuntimeClient(
            settings.token_source(),
            runtimes
            or HttpConnections(
                limit=limits.runtime_connections, connect_timeout=limits.connect_timeout_seconds
            ),
        )
        self._table = RoutingTable(
            catalog_reader(shared.database),
            cache_seconds=limits.route_seconds,
            capacity=limits.cached_routes,
        )
        dispatcher = Dispatcher(self._client, self._table, deadline=limits.deadline_seconds)
        metrics = GatewayMetrics(shared.registry)
        self._inference = Inference(self._table, dispatcher, self._spool, metrics, limits)

    def include_routers(self, app: FastAPI) -> None:
        """Add the routes."""
        tenant_from_key = self._shared.authenticator.tenant_from_key
        router = APIRouter(tags=["inference"], route_class=InferenceRoute)
        add_classify(router, self._inference, tenant_from_key)
        add_models(router, self._shared.database, tenant_from_key)
        router.include_router(
            build_open_inference(self._inference, tenant_from_key, self._shared.readiness.check)
        )
        app.include_router(router)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the spool and run the flusher while the context is open; flush once more at the end."""
        self._spool.open()
        flushing = asyncio.create_task(self._flusher.run(), name="usage-flusher")
        try:
            yield
        finally:
            await self._table.close()
            await self._client.close()
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
    runtimes. Call ``state.readiness.start_draining`` when the process gets a signal to stop.
    """
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
    app.include_router(_tenant_account(shared.database, shared.authenticator, settings.currency))
    registry = shared.registry if settings.metrics_port is None else None
    app.include_router(health.build_router(shared.readiness, registry))
    app.include_router(
        openapi.build_router(
            app, shared.authenticator, settings.admin_key, needs_key=not settings.openapi_is_public
        )
    )
    return app


_MAX_REPORTS = 4
MAX_REPORT_WAIT_SECONDS = 10.0


def _tenant_account(database: Database, authenticator: Authenticator, currency: str) -> APIRouter:
    """Return the routes of a tenant's usage, bill and invoices, which every process serves.

    A report uses a thread and a database connection until the database answers. Their number is limited, so
    that lookups of keys and routes for inference, which need both too, never wait for reports.
    """
    slots = asyncio.Semaphore(_MAX_REPORTS)

    async def report_slot() -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(MAX_REPORT_WAIT_SECONDS):
                await slots.acquire()
        except TimeoutError as error:
            raise NotReady("TooManyReports", "Too many reports are being computed; try again.") from error
        try:
            yield
        finally:
            slots.release()

    tenant = authenticator.tenant_from_key
    router = APIRouter(dependencies=[Depends(report_slot, scope="function")])
    router.include_router(usage_api.build_tenant_router(database, tenant))
    router.include_router(billing_api.build_tenant_router(database, tenant, currency=currency))
    return router


def _make_shared(settings: Settings, part: Part) -> SharedServices:
    _make_database_folder(settings.database_url)
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
