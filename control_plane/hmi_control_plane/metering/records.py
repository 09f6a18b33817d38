"""Usage events in the catalog: record each exactly once, mark them as billed, sum them.

Once an hour the loaded adapters are recorded, too: the bytes of every adapter that runtimes have loaded, for
that hour. Only what was loaded when the hour began counts, so that several control planes, or one that
restarts, record the same event again, which adds nothing. An hour in which no sweeper runs is not metered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from sqlalchemy import ColumnElement, Row, Table, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from hmi_api.internal.runs import RunView
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import (
    AdapterRow,
    AdapterVersion,
    Artifact,
    DeletedTenant,
    LoadReport,
    LoadState,
    Meter,
    Runtime,
    Tenant,
    UsageEventRow,
    new_tenant_id,
)
from hmi_control_plane.metering.events import UsageEvent, loaded_hour_event, training_event


def record_events(session: Session, events: Sequence[UsageEvent], recorded_at: datetime) -> None:
    """Record events in the session's transaction; events that are recorded already stay as they are."""
    if not events:
        return
    owners = _owners(session, [event for event in events if event.tenant_id is None], recorded_at)
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    statement = insert(cast(Table, UsageEventRow.__table__)).on_conflict_do_nothing(
        index_elements=["source", "event_id"]
    )
    # All writers insert in the same order, so that two of them cannot deadlock.
    rows = [
        _row(event, event.tenant_id or owners[event.source, event.id], recorded_at)
        for event in sorted(events, key=lambda event: (event.source, event.id))
    ]
    # One small statement, executed for many rows: a long statement would be compiled again for every number
    # of rows, which keeps the GIL and delays the event loop.
    session.connection().execute(statement, rows)


def record_training(session: Session, run: RunView, tenant: Tenant, finished_at: datetime) -> None:
    """Record the training time of a finished run; a run that is recorded already stays as it is."""
    record_events(session, [training_event(run, tenant.name, tenant.id, finished_at)], finished_at)


def _row(event: UsageEvent, tenant_id: str, recorded_at: datetime) -> dict[str, object]:
    return {
        "source": event.source,
        "event_id": event.id,
        "tenant": event.tenant,
        "tenant_id": tenant_id,
        "adapter": event.adapter,
        "version": event.version,
        "meter": str(event.meter),
        "quantity": event.quantity,
        "time": event.time,
        "request_id": event.request_id,
        "recorded_at": recorded_at,
    }


def _owners(
    session: Session, events: Sequence[UsageEvent], recorded_at: datetime
) -> dict[tuple[str, str], str]:
    """Return tenant ids by source and id of events that have only a tenant's name, as earlier versions wrote.

    Such an event belongs to the tenant that had the name at that time. For a name that no tenant ever had, a
    deleted tenant is created, so that no usage is lost.
    """
    names = {event.tenant for event in events}
    live = {
        tenant.name: tenant.id for tenant in session.scalars(select(Tenant).where(Tenant.name.in_(names)))
    }
    deleted: dict[str, list[DeletedTenant]] = {}
    for gone in session.scalars(
        select(DeletedTenant).where(DeletedTenant.name.in_(names)).order_by(DeletedTenant.deleted_at)
    ):
        deleted.setdefault(gone.name, []).append(gone)
    for name in names - live.keys() - deleted.keys():
        gone = DeletedTenant(id=new_tenant_id(), name=name, created_at=recorded_at, deleted_at=recorded_at)
        session.add(gone)
        deleted[name] = [gone]
    owners = {}
    for event in events:
        earlier = deleted.get(event.tenant, [])
        owner = next((gone.id for gone in earlier if event.time < gone.deleted_at), None)
        owners[event.source, event.id] = owner or live.get(event.tenant) or earlier[-1].id
    return owners


@dataclass(frozen=True, slots=True)
class UsageSum:
    """What a tenant used of one meter through one adapter (None: through none) in some period."""

    adapter: str | None
    meter: Meter
    quantity: int


def is_unbilled() -> ColumnElement[bool]:
    """Return the condition that no final invoice bills an event."""
    return UsageEventRow.invoice_id.is_(None)


def is_billed_by(invoice_id: str) -> ColumnElement[bool]:
    """Return the condition that this final invoice bills an event."""
    return UsageEventRow.invoice_id == invoice_id


def mark_billed(session: Session, tenant_id: str, start: datetime, end: datetime, invoice_id: str) -> None:
    """Mark a tenant's unbilled events in ``[start, end)`` as billed by this invoice."""
    session.execute(
        update(UsageEventRow)
        .where(
            UsageEventRow.tenant_id == tenant_id,
            UsageEventRow.time >= start,
            UsageEventRow.time < end,
            is_unbilled(),
        )
        .values(invoice_id=invoice_id)
        .execution_options(synchronize_session=False)
    )


def mark_unbilled(session: Session, invoice_id: str) -> None:
    """Mark the events that this invoice bills as unbilled."""
    session.execute(
        update(UsageEventRow)
        .where(is_billed_by(invoice_id))
        .values(invoice_id=None)
        .execution_options(synchronize_session=False)
    )


def sum_usage(
    session: Session,
    tenant_id: str,
    start: datetime,
    end: datetime,
    *,
    which: ColumnElement[bool] | None = None,
) -> list[UsageSum]:
    """Return a tenant's usage in ``[start, end)`` by adapter and meter, of events that match ``which``."""
    statement = (
        select(UsageEventRow.adapter, UsageEventRow.meter, func.sum(UsageEventRow.quantity))
        .where(UsageEventRow.tenant_id == tenant_id, UsageEventRow.time >= start, UsageEventRow.time < end)
        .group_by(UsageEventRow.adapter, UsageEventRow.meter)
    )
    if which is not None:
        statement = statement.where(which)
    found = [
        UsageSum(adapter, Meter(meter), int(total)) for adapter, meter, total in session.execute(statement)
    ]
    return sorted(found, key=lambda item: (item.adapter or "", item.meter))


ADAPTERS_PER_TRANSACTION = 1_000
"""Keeps transactions short, however many adapters there are."""


def start_of_hour(moment: datetime) -> datetime:
    """Return the start of the hour of ``moment`` (aware, UTC)."""
    return moment.replace(minute=0, second=0, microsecond=0)


def record_loaded_hour(database: Database, hour: datetime, recorded_at: datetime) -> None:
    """Record the loaded adapters of the hour that began at ``hour``; idempotent."""
    after: int | None = 0
    while after is not None:
        with database.write() as session:
            after = _count_some(session, hour, recorded_at, after)


def _count_some(session: Session, hour: datetime, recorded_at: datetime, after: int) -> int | None:
    """Record adapters after row id ``after``; return the last row id, or None when there are no more."""
    found = _loaded(session, hour, after)
    events = [
        loaded_hour_event(tenant, tenant_id, name, int(size), hour)  # a sum is a Decimal on PostgreSQL
        for _, tenant, tenant_id, name, size in found
    ]
    record_events(session, events, recorded_at)
    return found[-1][0] if len(found) == ADAPTERS_PER_TRANSACTION else None


def _loaded(session: Session, hour: datetime, after: int) -> list[Row[int, str, str, str, int]]:
    """Return row id, tenant, tenant id, name and bytes of loaded adapters.

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
        .limit(ADAPTERS_PER_TRANSACTION)
    )
    return list(session.execute(query))
