"""The control plane's processes as applications: everything is made and wired here, and nowhere else."""

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from fastapi import FastAPI
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import make_url
from starlette.concurrency import run_in_threadpool

from hmi_api.errors import ErrorBody
from hmi_api.security.request_body import BodyLimit, RequestBodyMiddleware
from hmi_api.servers import serving_metrics
from hmi_control_plane import errors, health, openapi, tenant_api
from hmi_control_plane.auth import Authenticator, CredentialMiddleware, Guarded
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.migrate import upgrade
from hmi_control_plane.gateway import RuntimeNetwork
from hmi_control_plane.metrics import HttpMetrics, MetricsMiddleware
from hmi_control_plane.middleware import FarewellMiddleware, HeadMiddleware, RequestIdMiddleware
from hmi_control_plane.parts import ControlPlanePart, GatewayPart, Shared
from hmi_control_plane.readiness import Readiness
from hmi_control_plane.settings import Part, Settings

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
