"""Builds the gateway: its objects and its router."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry

from hmi_api.security.bearer import TokenSource
from hmi_control_plane.auth import Identity
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.gateway.classify import add_classify
from hmi_control_plane.gateway.dispatch import Dispatcher
from hmi_control_plane.gateway.inference import GatewayMetrics, Inference
from hmi_control_plane.gateway.models import add_models
from hmi_control_plane.gateway.open_inference import build_open_inference
from hmi_control_plane.gateway.requests import InferenceRoute
from hmi_control_plane.gateway.routes import RoutingTable, catalog_reader
from hmi_control_plane.gateway.runtime_client import HttpConnections, RuntimeClient, RuntimeNetwork
from hmi_control_plane.metering import Spool
from hmi_control_plane.settings import GatewaySettings


class Gateway:
    """Routes tenants' requests to runtimes. Use it from one event loop, and close it.

    ``network`` replaces the connections to the runtimes.
    """

    def __init__(
        self,
        database: Database,
        spool: Spool,
        token: TokenSource,
        registry: CollectorRegistry,
        settings: GatewaySettings | None = None,
        *,
        network: RuntimeNetwork | None = None,
    ) -> None:
        settings = settings or GatewaySettings()
        self._client = RuntimeClient(
            token,
            network
            or HttpConnections(
                limit=settings.runtime_connections, connect_timeout=settings.connect_timeout_seconds
            ),
        )
        self._table = RoutingTable(
            catalog_reader(database),
            cache_seconds=settings.route_seconds,
            capacity=settings.cached_routes,
        )
        dispatcher = Dispatcher(self._client, self._table, deadline=settings.deadline_seconds)
        self.inference = Inference(self._table, dispatcher, spool, GatewayMetrics(registry), settings)

    async def close(self) -> None:
        """Close the connections to runtimes."""
        await self._table.close()
        await self._client.close()


def build_router(
    gateway: Gateway,
    database: Database,
    tenant_from_key: Callable[[Request], Awaitable[Identity]],
    require_ready: Callable[[], Awaitable[None]],
) -> APIRouter:
    """Return ``/classify``, ``/v1/models`` and ``/v2``.

    ``require_ready`` raises NotReady while the process is not ready.
    """
    router = APIRouter(tags=["inference"], route_class=InferenceRoute)
    add_classify(router, gateway.inference, tenant_from_key)
    add_models(router, database, tenant_from_key)
    router.include_router(build_open_inference(gateway.inference, tenant_from_key, require_ready))
    return router
