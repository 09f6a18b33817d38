"""Usage reports: sums of usage events by interval and group, in pages."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from pydantic import TypeAdapter
from sqlalchemy import ColumnElement, Select, cast, func, literal, select, tuple_
from sqlalchemy import String as SqlString
from sqlalchemy.orm import Session

from hmi_api.errors import InvalidInput
from hmi_control_plane.catalog.paging import KeyText, decode_cursor, encode_cursor
from hmi_control_plane.catalog.tables import Meter, UsageEventRow

MAX_REPORT_LINES = 1_000
_KEY_PARTS = 5
_CURSOR: TypeAdapter[tuple[str, str, str, str, str]] = TypeAdapter(
    tuple[KeyText, KeyText, KeyText, KeyText, KeyText]
)
"""Interval, tenant, tenant id, adapter and meter of the last line; empty if the report is not split by it."""


class UsageInterval(StrEnum):
    """The interval of a line; intervals start at full hours, days or months in UTC."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"


class UsageGroup(StrEnum):
    """What a report is split by."""

    TENANT = "tenant"
    ADAPTER = "adapter"
    METER = "meter"


@dataclass(frozen=True)
class UsageQuery:
    """What a report covers: ``[start, end)``, both aware.

    The meter is always a group of its own, since requests and tokens have no sum.
    """

    start: datetime
    end: datetime
    bucket: UsageInterval | None = None
    groups: frozenset[UsageGroup] = frozenset()
    tenant_id: str | None = None
    adapter: str | None = None
    meter: Meter | None = None
    limit: int = 100
    after: str | None = None


@dataclass(frozen=True)
class UsageLine:
    """One sum; a field that the report was not split by is None."""

    start: str | None
    tenant: str | None
    tenant_id: str | None
    adapter: str | None
    meter: Meter
    quantity: int


@dataclass(frozen=True)
class UsagePage:
    """Lines in the order of window, tenant, adapter and meter; ``next`` continues after the last one."""

    lines: list[UsageLine]
    next: str | None


def build_report(session: Session, query: UsageQuery) -> UsagePage:
    """Return one page of a report. Raises InvalidInput for an empty window or a cursor of another query."""
    if query.start >= query.end:
        raise InvalidInput(
            "EmptyWindow",
            f"from ({query.start.isoformat()}) must be earlier than to ({query.end.isoformat()}).",
        )
    rows = session.execute(_page(session, query)).all()
    found = [
        UsageLine(
            start or None, tenant or None, tenant_id or None, adapter or None, Meter(meter), int(quantity)
        )
        for start, tenant, tenant_id, adapter, meter, quantity in rows[: query.limit]
    ]
    if len(rows) <= query.limit:
        return UsagePage(found, next=None)
    last = [str(part) for part in rows[query.limit - 1][:_KEY_PARTS]]
    return UsagePage(found, next=encode_cursor(last))


def _page(session: Session, query: UsageQuery) -> Select[str, str, str, str, str, int]:
    nothing = literal("", SqlString)
    window = _window(session, query.bucket) if query.bucket else nothing
    by_tenant = UsageGroup.TENANT in query.groups
    tenant = UsageEventRow.tenant if by_tenant else nothing
    tenant_id = UsageEventRow.tenant_id if by_tenant else nothing
    adapter = func.coalesce(UsageEventRow.adapter, "") if UsageGroup.ADAPTER in query.groups else nothing
    # No label may be a column's name: GROUP BY would take the column.
    sums = (
        select(
            window.label("by_window"),
            tenant.label("by_tenant"),
            tenant_id.label("by_tenant_id"),
            adapter.label("by_adapter"),
            UsageEventRow.meter.label("by_meter"),
            func.sum(UsageEventRow.quantity).label("total"),
        )
        .where(UsageEventRow.time >= query.start, UsageEventRow.time < query.end, *_filters(query))
        .group_by("by_window", "by_tenant", "by_tenant_id", "by_adapter", "by_meter")
        .subquery()
    )
    key = (sums.c.by_window, sums.c.by_tenant, sums.c.by_tenant_id, sums.c.by_adapter, sums.c.by_meter)
    page = select(*key, sums.c.total).order_by(*key).limit(query.limit + 1)
    after = decode_cursor(query.after, _CURSOR)
    if after is not None:
        page = page.where(tuple_(*key) > tuple_(*(literal(part) for part in after)))
    return page


def _filters(query: UsageQuery) -> list[ColumnElement[bool]]:
    wanted = (
        (UsageEventRow.tenant_id, query.tenant_id),
        (UsageEventRow.adapter, query.adapter),
        (UsageEventRow.meter, query.meter),
    )
    return [column == str(value) for column, value in wanted if value is not None]


def _window(session: Session, bucket: UsageInterval) -> ColumnElement[str]:
    """Return the window's start as ISO text, which sorts by time and is the same on both databases."""
    if session.get_bind().dialect.name == "sqlite":
        pattern = {
            UsageInterval.HOUR: "%Y-%m-%dT%H:00:00Z",
            UsageInterval.DAY: "%Y-%m-%dT00:00:00Z",
            UsageInterval.MONTH: "%Y-%m-01T00:00:00Z",
        }[bucket]
        return func.strftime(pattern, UsageEventRow.time, type_=SqlString())
    start = func.date_trunc(bucket.value, func.timezone("UTC", UsageEventRow.time))
    return cast(func.to_char(start, 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), SqlString)
