"""The gateway put together: its router, and what must be closed when the application stops."""

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
from hmi_control_plane.gateway.routes import RoutingTable, read_routes_from
from hmi_control_plane.gateway.runtime_client import Connections, RuntimeClient, RuntimeNetwork
from hmi_control_plane.metering import Spool
from hmi_control_plane.settings import GatewaySettings


class Gateway:
    """Routes tenants' requests to runtimes. Use it from one event loop, and close it.

    ``network`` replaces the way to the runtimes.
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
            or Connections(
                limit=settings.runtime_connections, connect_timeout=settings.connect_timeout_seconds
            ),
        )
        self._table = RoutingTable(
            read_routes_from(database),
            believe_seconds=settings.route_seconds,
            capacity=settings.cached_routes,
        )
        dispatcher = Dispatcher(self._client, self._table, deadline=settings.deadline_seconds)
        self.inference = Inference(self._table, dispatcher, spool, GatewayMetrics(registry), settings)

    async def close(self) -> None:
        """Let go of connections to runtimes."""
        await self._table.close()
        await self._client.close()


def build_router(
    gateway: Gateway,
    database: Database,
    tenant_from_key: Callable[[Request], Awaitable[Identity]],
    require_ready: Callable[[], Awaitable[None]],
) -> APIRouter:
    """Return ``/classify``, ``/v1/models`` and ``/v2``.

    ``require_ready`` raises NotReady while requests are not answered.
    """
    router = APIRouter(tags=["inference"], route_class=InferenceRoute)
    add_classify(router, gateway.inference, tenant_from_key)
    add_models(router, database, tenant_from_key)
    router.include_router(build_open_inference(gateway.inference, tenant_from_key, require_ready))
    return router
