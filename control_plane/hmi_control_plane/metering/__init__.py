"""Metering: usage events are on disk before a request is answered, and in the catalog exactly once.

``events`` defines them, ``spool`` and ``segments`` keep them on the gateway's disk, ``flusher`` moves them to
the catalog, ``records`` stores and sums them there, and ``reports`` answers queries. Prices are in
``billing``.
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
