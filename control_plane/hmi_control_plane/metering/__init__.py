"""Metering: what was used becomes a durable event before it counts, and reaches the ledger exactly once.

Belongs here: usage events as CloudEvents, the local spool and its segment files, the flusher that moves them
into the catalog, the hours of residency, sums over the ledger and the usage reports. Forbidden here: prices
and money (billing's), routing of requests (the gateway's), and quotas.
"""

from hmi_control_plane.metering.api import build_admin_router, build_tenant_router
from hmi_control_plane.metering.events import UsageEvent, request_events, training_event
from hmi_control_plane.metering.flusher import Flusher
from hmi_control_plane.metering.ledger import Quantity, quantities, record
from hmi_control_plane.metering.metrics import MeteringMetrics
from hmi_control_plane.metering.residency import count_hour, whole_hour
from hmi_control_plane.metering.segments import SegmentFolder, SpoolInUseError
from hmi_control_plane.metering.spool import Spool

__all__ = [
    "Flusher",
    "MeteringMetrics",
    "Quantity",
    "SegmentFolder",
    "Spool",
    "SpoolInUseError",
    "UsageEvent",
    "build_admin_router",
    "build_tenant_router",
    "count_hour",
    "quantities",
    "record",
    "request_events",
    "training_event",
    "whole_hour",
]
