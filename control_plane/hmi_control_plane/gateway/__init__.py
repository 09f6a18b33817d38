"""The gateway: tenants' requests for inference, from the key to the answer.

Belongs here: the protocols that tenants speak, the routing table, the pooled way to the runtimes, retries and
deadlines, fan-out, and the usage events of what was answered. Forbidden here: torch, placement decisions,
writes to the catalog, prices, and a database query on the path of a request whose route is known.
"""

from hmi_control_plane.gateway.gateway import Gateway, build_router
from hmi_control_plane.gateway.runtime_client import RuntimeNetwork

__all__ = ["Gateway", "RuntimeNetwork", "build_router"]
