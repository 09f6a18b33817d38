"""Residency as use: in each hour, the bytes of every adapter that runtimes have ready, times that hour.

An hour counts what was ready when it began and still is when a sweeper counts it, moments later. An adapter's
hour is one event: another replica, or a process started anew, counts it again and adds nothing, since what
became ready meanwhile waits for the next hour. An hour in which no sweeper runs counts nothing.
"""

from datetime import datetime

from sqlalchemy import Row, func, select
from sqlalchemy.orm import Session

from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import (
    AdapterRow,
    AdapterVersion,
    Artifact,
    LoadReport,
    LoadState,
    Runtime,
    Tenant,
)
from hmi_control_plane.metering.events import UsageEvent, residency_event
from hmi_control_plane.metering.ledger import record

ADAPTERS_A_TRANSACTION = 1_000
"""So that whoever else writes waits for a moment only, however many adapters there are."""


def whole_hour(moment: datetime) -> datetime:
    """Return the beginning of the hour that ``moment`` (aware, UTC) lies in."""
    return moment.replace(minute=0, second=0, microsecond=0)


def count_hour(database: Database, hour: datetime, recorded_at: datetime) -> None:
    """Add the events of the hour that began at ``hour`` to the ledger; those already there are left."""
    after: int | None = 0
    while after is not None:
        with database.write() as session:
            after = _count_some(session, hour, recorded_at, after)


def _count_some(session: Session, hour: datetime, recorded_at: datetime, after: int) -> int | None:
    """Count the adapters behind row id ``after``; return the last one's, or None when there are no more."""
    found = _ready(session, hour, after)
    record(session, [_event(row, hour) for row in found], recorded_at)
    return found[-1][0] if len(found) == ADAPTERS_A_TRANSACTION else None


def _ready(session: Session, hour: datetime, after: int) -> list[Row[int, str, str, str, int]]:
    """Return id, tenant, tenant's id, name and bytes of adapters.

    A version counts once for each runtime that has it.
    """
    query = (
        select(
            AdapterRow.id, Tenant.name, Tenant.id, AdapterRow.name, func.sum(Artifact.bytes).label("bytes")
        )
        .join(Tenant, Tenant.name == AdapterRow.tenant)
        .join(LoadReport, LoadReport.adapter_id == AdapterRow.id)
        .join(Runtime, Runtime.id == LoadReport.runtime_id)
        .join(
            AdapterVersion,
            (AdapterVersion.adapter_id == AdapterRow.id) & (AdapterVersion.version == LoadReport.version),
        )
        .join(Artifact, Artifact.digest == AdapterVersion.artifact_digest)
        .where(
            AdapterRow.id > after,
            LoadReport.state == LoadState.READY,
            LoadReport.updated_at <= hour,
            ~Runtime.lost,
        )
        .group_by(AdapterRow.id, Tenant.name, Tenant.id, AdapterRow.name)
        .order_by(AdapterRow.id)
        .limit(ADAPTERS_A_TRANSACTION)
    )
    return list(session.execute(query))


def _event(row: Row[int, str, str, str, int], hour: datetime) -> UsageEvent:
    _, tenant, tenant_id, name, size = row
    return residency_event(tenant, tenant_id, name, int(size), hour)  # a sum is a Decimal on PostgreSQL
