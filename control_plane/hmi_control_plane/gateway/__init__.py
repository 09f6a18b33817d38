"""The gateway: tenants' inference requests.

Belongs here: the HTTP APIs for inference, the routing table, the client of the runtimes, retries and
deadlines, fan-out, and the usage events of answered requests. Forbidden here: torch, placement decisions,
writes to the catalog, prices, and database queries in a request whose route is cached.
"""

from hmi_control_plane.gateway.gateway import Gateway, build_router
from hmi_control_plane.gateway.runtime_client import RuntimeNetwork

__all__ = ["Gateway", "RuntimeNetwork", "build_router"]
