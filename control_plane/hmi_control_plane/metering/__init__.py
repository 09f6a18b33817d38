"""Metering: what was used becomes a durable event before it counts, and reaches the ledger exactly once.

Belongs here: usage events as CloudEvents, the local spool and its segment files, the flusher that moves them
into the catalog, the hours of residency, sums over the ledger and the usage reports. Forbidden here: prices
and money (billing's), routing of requests (the gateway's), and quotas.
"""

from hmi_control_plane.metering.events import UsageEvent, request_events, training_event
from hmi_control_plane.metering.flusher import Flusher, MeteringMetrics
from hmi_control_plane.metering.records import (
    UsageSum,
    record_events,
    record_loaded_hour,
    start_of_hour,
    sum_usage,
)
from hmi_control_plane.metering.segments import SegmentFolder, SpoolInUseError
from hmi_control_plane.metering.spool import Spool

__all__ = [
    "Flusher",
    "MeteringMetrics",
    "SegmentFolder",
    "Spool",
    "SpoolInUseError",
    "UsageEvent",
    "UsageSum",
    "record_events",
    "record_loaded_hour",
    "request_events",
    "start_of_hour",
    "sum_usage",
    "training_event",
]
