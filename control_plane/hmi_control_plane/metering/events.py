"""Usage events as CloudEvents 1.0; ``(source, id)`` identifies an event."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from hmi_api.internal.runs import RunView
from hmi_control_plane.catalog.tables import Meter

EVENT_TYPE = "dev.hmi.usage.v1"
REQUEST_SOURCE = "/hmi/gateway"
TRAINING_SOURCE = "/hmi/training"
LOADED_HOUR_SOURCE = "/hmi/residency"

_ENCODE = json.JSONEncoder(separators=(",", ":")).encode
"""Created once: json.dumps would create an encoder for every call."""


@dataclass(frozen=True, slots=True)
class UsageEvent:
    """A whole number of one meter's units, used by a tenant at ``time`` (aware, UTC).

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
    """Identifies the tenant even if its name is used again. None in spools of earlier versions."""


def request_events(
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
    """Return the events of one adapter of a request: one request, its answered rows and their tokens.

    ``request_id`` must be the gateway's own, never the client's, or a client could have two requests
    counted as one. ``ordinal`` is the adapter's place in the request: a request that fans out over several
    adapters counts one request for each of them.
    """
    quantities = {Meter.REQUESTS: 1, Meter.ROWS: rows, Meter.PROMPT_TOKENS: prompt_tokens}
    return [
        UsageEvent(
            source=REQUEST_SOURCE,
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
    """Return a finished run's event: its training time in seconds, rounded up.

    The id contains the run's id, so that a completion that is reported twice counts once. Raises ValueError
    when the run has no result.
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


def loaded_hour_event(tenant: str, tenant_id: str, adapter: str, size: int, hour: datetime) -> UsageEvent:
    """Return the event of an adapter of ``size`` bytes that was loaded from ``hour`` (aware, UTC) on.

    The id consists of adapter and hour, so that an hour that is recorded twice counts once.
    """
    return UsageEvent(
        source=LOADED_HOUR_SOURCE,
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
    """Return the event in a line. Raises ValueError, KeyError or TypeError if there is none."""
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
