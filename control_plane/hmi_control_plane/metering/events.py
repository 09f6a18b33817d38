"""Usage events: what was used, as CloudEvents 1.0 whose ``(source, id)`` is their identity."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hmi_api.internal.runs import RunView
from hmi_control_plane.catalog.tables import Meter

EVENT_TYPE = "dev.hmi.usage.v1"
TRAINING_SOURCE = "/hmi/training"
RESIDENCY_SOURCE = "/hmi/residency"

_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
"""Made once: json.dumps makes an encoder at every call."""


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """A whole number of one meter's units, used by a tenant at a moment (aware, UTC).

    The same ``(source, id)`` is the same event: however often it is delivered, it counts once.
    """

    source: str
    id: str
    time: datetime
    tenant: str
    meter: Meter
    quantity: int
    adapter: str | None = None
    version: int | None = None
    request_id: str | None = None
    tenant_id: str | None = None
    """Who used it, though the name be another tenant's by now. None in spools of earlier versions."""


def request_events(
    source: str,
    request_id: str,
    time: datetime,
    tenant: str,
    adapter: str,
    *,
    tenant_id: str,
    ordinal: int,
    rows: int,
    prompt_tokens: int,
    version: int | None = None,
) -> list[UsageEvent]:
    """Return what one adapter's share of a request used: a request, its answered rows and their tokens.

    ``request_id`` must be the gateway's own, never the client's, or a client could have two requests
    counted as one. ``ordinal`` is the adapter's place in the request: a request that fans out over several
    adapters counts one request for each of them.
    """
    quantities = {Meter.REQUESTS: 1, Meter.ROWS: rows, Meter.PROMPT_TOKENS: prompt_tokens}
    return [
        UsageEvent(
            source=source,
            id=f"{request_id}/{ordinal}/{meter}",
            time=time,
            tenant=tenant,
            meter=meter,
            quantity=quantity,
            adapter=adapter,
            version=version,
            request_id=request_id,
            tenant_id=tenant_id,
        )
        for meter, quantity in quantities.items()
    ]


def training_event(run: RunView, tenant: str, tenant_id: str, time: datetime) -> UsageEvent:
    """Return what a finished run used: its training time in seconds, rounded up to a whole one.

    The id is the run's, so that a completion reported twice counts once. Raises ValueError when the run
    has no result.
    """
    if run.result is None:
        raise ValueError(f"run {run.id} has no result to meter")
    return UsageEvent(
        source=TRAINING_SOURCE,
        id=f"{run.id}/{Meter.TRAINING_SECONDS}",
        time=time,
        tenant=tenant,
        meter=Meter.TRAINING_SECONDS,
        quantity=math.ceil(run.result.training_seconds),
        adapter=run.spec.name if run.spec.kind == "adapter" else None,
        tenant_id=tenant_id,
    )


def residency_event(tenant: str, tenant_id: str, adapter: str, size: int, hour: datetime) -> UsageEvent:
    """Return what an adapter of so many bytes used in the hour that began at ``hour`` (aware, UTC).

    The id is the adapter's and the hour's, so that an hour counted twice counts once.
    """
    return UsageEvent(
        source=RESIDENCY_SOURCE,
        id=f"{hour:%Y-%m-%dT%HZ}/{tenant}/{adapter}",
        time=hour,
        tenant=tenant,
        meter=Meter.RESIDENT_BYTE_HOURS,
        quantity=size,
        adapter=adapter,
        tenant_id=tenant_id,
    )


def to_cloud_event(event: UsageEvent) -> str:
    """Return the event as one line of CloudEvents JSON, without a line break or a raw tab."""
    data = {"tenant": event.tenant, "meter": event.meter, "quantity": event.quantity}
    optional = {
        "tenantId": event.tenant_id,
        "adapter": event.adapter,
        "version": event.version,
        "requestId": event.request_id,
    }
    envelope = {
        "specversion": "1.0",
        "type": EVENT_TYPE,
        "source": event.source,
        "id": event.id,
        "time": event.time.isoformat(),
        "datacontenttype": "application/json",
        "data": data | {name: value for name, value in optional.items() if value is not None},
    }
    return _ENCODE(envelope)


def from_cloud_event(line: str) -> UsageEvent:
    """Return the event a line holds. Raises ValueError, KeyError or TypeError when it holds none."""
    envelope: Mapping[str, Any] = json.loads(line)
    if envelope["type"] != EVENT_TYPE:
        raise ValueError(f"{envelope['type']} is not {EVENT_TYPE}")
    data: Mapping[str, Any] = envelope["data"]
    return UsageEvent(
        source=envelope["source"],
        id=envelope["id"],
        time=datetime.fromisoformat(envelope["time"]),
        tenant=data["tenant"],
        meter=Meter(data["meter"]),
        quantity=int(data["quantity"]),
        adapter=data.get("adapter"),
        version=data.get("version"),
        request_id=data.get("requestId"),
        tenant_id=data.get("tenantId"),
    )
