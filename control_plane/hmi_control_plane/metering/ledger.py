"""The ledger: usage events in the catalog, each exactly once, and sums over them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from sqlalchemy import ColumnElement, Table, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from hmi_control_plane.catalog.tables import DeletedTenant, Meter, Tenant, UsageEventRow, new_tenant_id
from hmi_control_plane.metering.events import UsageEvent


def record(session: Session, events: Sequence[UsageEvent], recorded_at: datetime) -> None:
    """Add events to the ledger within the session's transaction; those already there are left as they are."""
    if not events:
        return
    owners = _owners(session, [event for event in events if event.tenant_id is None], recorded_at)
    insert = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    statement = insert(cast(Table, UsageEventRow.__table__)).on_conflict_do_nothing(
        index_elements=["source", "event_id"]
    )
    # One order for all writers, so that two of them cannot wait for each other's rows.
    rows = [
        _row(event, event.tenant_id or owners[event.source, event.id], recorded_at)
        for event in sorted(events, key=lambda event: (event.source, event.id))
    ]
    # One small statement for many rows: a long one would be made anew for every number of rows, which keeps
    # the event loop beside this thread from its requests.
    session.connection().execute(statement, rows)


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
    """Return the tenant's id by source and id of events that name a tenant only, as earlier versions wrote.

    Such an event belongs to the tenant that had the name at its time. A name that no tenant ever had gets a
    deleted tenant, so that no use is lost.
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
class Quantity:
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
    """Note of a tenant's events in ``[start, end)`` that no invoice bills yet that this one does."""
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
    """Note of the events that this invoice bills that none does any more."""
    session.execute(
        update(UsageEventRow)
        .where(is_billed_by(invoice_id))
        .values(invoice_id=None)
        .execution_options(synchronize_session=False)
    )


def quantities(
    session: Session,
    tenant_id: str,
    start: datetime,
    end: datetime,
    *,
    which: ColumnElement[bool] | None = None,
) -> list[Quantity]:
    """Return a tenant's use in ``[start, end)``, by adapter and meter, of all events or some."""
    statement = (
        select(UsageEventRow.adapter, UsageEventRow.meter, func.sum(UsageEventRow.quantity))
        .where(UsageEventRow.tenant_id == tenant_id, UsageEventRow.time >= start, UsageEventRow.time < end)
        .group_by(UsageEventRow.adapter, UsageEventRow.meter)
    )
    if which is not None:
        statement = statement.where(which)
    found = [
        Quantity(adapter, Meter(meter), int(total)) for adapter, meter, total in session.execute(statement)
    ]
    return sorted(found, key=lambda item: (item.adapter or "", item.meter))
