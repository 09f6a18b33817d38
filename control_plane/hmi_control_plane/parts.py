"""The two halves of the control plane, each with its routes and what runs beside them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import timedelta

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from pydantic import SecretStr

from hmi_api.security.request_body import BodyLimit
from hmi_control_plane import admin_api, billing, gateway, internal_api, metering
from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.auth import Authenticator, Door, Guarded, require_token
from hmi_control_plane.catalog.artifacts import ArtifactEraser
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.internal_api.changes import Changes
from hmi_control_plane.readiness import Readiness
from hmi_control_plane.settings import Settings
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
        self._callers = settings.caller_check()
        self._files = ArtifactFiles(settings.artifacts)
        self._sweeper = Sweeper(
            shared.database,
            ArtifactEraser(shared.database, settings.artifacts),
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
