"""Merges runtimes' reports into the counts by Domain, tenant and day, within bounds."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, UnaryExpression, delete, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from hmi_api.internal.window_counts import DomainWindows
from hmi_control_plane.catalog.database import (
    AdvisoryLock,
    Database,
    acquire_lock,
    insert_or_replace,
    utc_now,
)
from hmi_control_plane.catalog.tables import (
    DomainLookupsRow,
    DomainRow,
    DomainVersion,
    PendingWindowReport,
    Tenant,
    WindowCountRow,
    WindowReporter,
)
from hmi_control_plane.settings import WindowCountSettings
from hmi_control_plane.window_counts.arrays import KeyCounts, fair_limit
from hmi_control_plane.window_counts.reports import load_report

_REPORTS_AT_ONCE = 16
"""Reports of one transaction, which bounds how long it takes, and its memory."""
_ROWS_PER_STATEMENT = 500
_WINDOWS_AT_ONCE = 500_000
"""Windows that are merged at once, about 100 bytes each: a report can touch thousands of full rows."""
_TRIMMED_SHARE = 0.9
"""How full a Domain's room is after it was exceeded, so that not every merge cuts again."""
_LARGEST_TOTAL = 1 << 62


class RowKey(NamedTuple):
    """The primary key of a row of counts."""

    domain_id: int
    layers_digest: str
    tenant_id: str
    day: date


@dataclass(frozen=True)
class _Version:
    """The row ids of a Domain's version and of the Domain."""

    id: int
    domain_id: int


class WindowCountMerger:
    """Merges stored reports into the counts, and deletes counts that are too old.

    ``on_cut`` receives how many windows were deleted because a tenant's day or a Domain had too many.
    """

    def __init__(
        self,
        database: Database,
        settings: WindowCountSettings,
        on_cut: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.settings = settings
        self._database = database
        self._on_cut = on_cut

    def merge(self) -> int:
        """Merge all stored reports, a few in each transaction; return how many there were."""
        merged = 0
        while True:
            with self._database.write() as session:
                acquire_lock(session, AdvisoryLock.WINDOW_COUNTS)
                count = self._merge_some(session)
            merged += count
            if count < _REPORTS_AT_ONCE:
                return merged

    def delete_old(self) -> None:
        """Delete counts of days before the first that is kept, and what is known of reporters since then."""
        with self._database.write() as session:
            first = self.settings.first_day(utc_now())
            session.execute(delete(WindowCountRow).where(WindowCountRow.day < first))
            session.execute(delete(WindowReporter).where(WindowReporter.reported_at < _midnight(first)))

    def _merge_some(self, session: Session) -> int:
        query = select(PendingWindowReport).order_by(PendingWindowReport.id).limit(_REPORTS_AT_ONCE)
        rows = session.scalars(query).all()
        found = [(row.received_at.date(), domain) for row in rows for domain in load_report(row)]
        # Locked in this order before anything is written, as deletions of tenants and Domains lock them.
        tenants = _known_tenants(session, {part.tenant_id for _, one in found for part in one.tenants})
        versions = _known_versions(session, [one for _, one in found])
        self._merge_windows(session, found, tenants, versions)
        _merge_lookups(session, [one for _, one in found], versions)
        for row in rows:
            session.delete(row)
        return len(rows)

    def _merge_windows(
        self,
        session: Session,
        found: Sequence[tuple[date, DomainWindows]],
        tenants: Collection[str],
        versions: dict[tuple[str, int, str], _Version],
    ) -> None:
        parts: dict[RowKey, list[KeyCounts]] = defaultdict(list)
        for day, one in found:
            version = versions.get(_identity(one))
            if version is None:  # deleted meanwhile
                continue
            for windows in one.tenants:
                if windows.tenant_id in tenants:
                    key = RowKey(version.domain_id, one.layers_digest, windows.tenant_id, day)
                    parts[key].append(KeyCounts.of(windows))
        domains = {key.domain_id for key in parts}
        for keys in _batches(session, parts):
            self._merge_rows(session, {key: parts.pop(key) for key in keys})
        for domain_id in sorted(domains):
            self._trim(session, domain_id)

    def _merge_rows(self, session: Session, parts: dict[RowKey, list[KeyCounts]]) -> None:
        """Add windows to the rows of ``parts``, and cut each row to what a day may have."""
        for key, data in _stored(session, parts):
            parts[key].append(KeyCounts.from_bytes(data))
        merged = {key: KeyCounts.merge(some) for key, some in parts.items()}
        kept = {key: one.most_frequent(self.settings.windows_per_day) for key, one in merged.items()}
        _store(session, {key: one for key, one in kept.items() if len(one)})
        self._on_cut(sum(len(merged[key]) - len(one) for key, one in kept.items()))

    def _trim(self, session: Session, domain_id: int) -> None:
        """Keep a Domain within its bounds of rows and of windows."""
        of_domain = WindowCountRow.domain_id == domain_id
        query = select(func.count(), func.coalesce(func.sum(WindowCountRow.windows), 0))
        rows, windows = session.execute(query.where(of_domain)).one()
        if rows > self._most_rows:
            windows -= self._delete_rows(session, domain_id)
        if windows > self.settings.windows_per_domain:
            self._cut_rows(session, domain_id)

    @property
    def _most_rows(self) -> int:
        """How many rows a Domain may have: each has at least one window."""
        return min(self.settings.rows_per_domain, self.settings.windows_per_domain)

    def _delete_rows(self, session: Session, domain_id: int) -> int:
        """Delete a Domain's rows of the oldest days, of one day the shortest; return their windows."""
        newest = (WindowCountRow.day.desc(), WindowCountRow.windows.desc(), WindowCountRow.tenant_id)
        kept = max(1, int(_TRIMMED_SHARE * self._most_rows))
        surplus = dict(_sizes(session, domain_id, *newest)[kept:])
        for _, conditions in _conditions(surplus):
            session.execute(delete(WindowCountRow).where(*conditions))
        deleted = sum(surplus.values())
        self._on_cut(deleted)
        return deleted

    def _cut_rows(self, session: Session, domain_id: int) -> None:
        """Cut the longest rows of a Domain, all to the same length."""
        sizes = dict(_sizes(session, domain_id))
        room = int(_TRIMMED_SHARE * self.settings.windows_per_domain)
        limit = max(1, fair_limit(sizes.values(), room))
        longer = [key for key, windows in sizes.items() if windows > limit]
        rows = _stored(session, longer)
        _store(session, {key: KeyCounts.from_bytes(data).most_frequent(limit) for key, data in rows})
        self._on_cut(sum(sizes[key] - limit for key in longer))


_KEY_COLUMNS = (
    WindowCountRow.domain_id,
    WindowCountRow.layers_digest,
    WindowCountRow.tenant_id,
    WindowCountRow.day,
)


def _identity(one: DomainWindows) -> tuple[str, int, str]:
    return one.domain, one.version, one.layers_digest


def _known_tenants(session: Session, ids: Collection[str]) -> set[str]:
    """Return those of ``ids`` that are tenants, locked so that none is deleted meanwhile."""
    found: set[str] = set()
    for chunk in _chunks(sorted(ids)):
        query = select(Tenant.id).where(Tenant.id.in_(chunk)).order_by(Tenant.name)
        found.update(session.scalars(query.with_for_update(read=True, key_share=True)))
    return found


def _known_versions(
    session: Session, reported: Sequence[DomainWindows]
) -> dict[tuple[str, int, str], _Version]:
    """Return the versions of ``reported`` by Domain, version and layers; their Domains are locked."""
    found: dict[tuple[str, int, str], _Version] = {}
    for chunk in _chunks(sorted({one.domain for one in reported})):
        domains = select(DomainRow.id).where(DomainRow.key.in_(chunk)).order_by(DomainRow.key)
        locked = session.scalars(domains.with_for_update(read=True, key_share=True)).all()
        # Read after the locks are held: a refresh that had them may have deleted versions.
        query = (
            select(
                DomainRow.key,
                DomainVersion.version,
                DomainVersion.layers_digest,
                DomainVersion.id,
                DomainVersion.domain_id,
            )
            .join(DomainVersion, DomainVersion.domain_id == DomainRow.id)
            .where(DomainRow.id.in_(locked))
        )
        for key, version, layers_digest, row_id, domain_id in session.execute(query):
            found[key, version, layers_digest] = _Version(row_id, domain_id)
    return found


def _batches(session: Session, parts: dict[RowKey, list[KeyCounts]]) -> Iterator[list[RowKey]]:
    """Yield the keys of ``parts`` in groups whose windows, with those stored, fit into memory together."""
    stored: dict[RowKey, int] = {}
    for (domain_id, layers_digest, day), conditions in _conditions(parts):
        query = select(WindowCountRow.tenant_id, WindowCountRow.windows).where(*conditions)
        for tenant_id, windows in session.execute(query):
            stored[RowKey(domain_id, layers_digest, tenant_id, day)] = windows
    batch: list[RowKey] = []
    total = 0
    for key in sorted(parts):
        size = stored.get(key, 0) + sum(map(len, parts[key]))
        if batch and total + size > _WINDOWS_AT_ONCE:
            yield batch
            batch, total = [], 0
        batch.append(key)
        total += size
    if batch:
        yield batch


def _sizes(
    session: Session, domain_id: int, *order: UnaryExpression[Any] | InstrumentedAttribute[Any]
) -> list[tuple[RowKey, int]]:
    """Return how many windows each row of a Domain has."""
    query = select(*_KEY_COLUMNS, WindowCountRow.windows).where(WindowCountRow.domain_id == domain_id)
    return [(RowKey(*row[:4]), row[4]) for row in session.execute(query.order_by(*order))]


def _conditions(
    keys: Iterable[RowKey],
) -> Iterator[tuple[tuple[int, str, date], list[ColumnElement[bool]]]]:
    """Yield conditions that together choose the rows of ``keys``, each with the part that they share."""
    groups: dict[tuple[int, str, date], list[str]] = defaultdict(list)
    for key in keys:
        groups[key.domain_id, key.layers_digest, key.day].append(key.tenant_id)
    for group, tenants in groups.items():
        domain_id, layers_digest, day = group
        for chunk in _chunks(tenants):
            yield (
                group,
                [
                    WindowCountRow.domain_id == domain_id,
                    WindowCountRow.layers_digest == layers_digest,
                    WindowCountRow.day == day,
                    WindowCountRow.tenant_id.in_(chunk),
                ],
            )


def _stored(session: Session, keys: Iterable[RowKey]) -> list[tuple[RowKey, bytes]]:
    """Return the compressed windows of those ``keys`` that are stored."""
    found = []
    for (domain_id, layers_digest, day), conditions in _conditions(keys):
        query = select(WindowCountRow.tenant_id, WindowCountRow.data).where(*conditions)
        for tenant_id, data in session.execute(query):
            found.append((RowKey(domain_id, layers_digest, tenant_id, day), data))
    return found


def _store(session: Session, rows: dict[RowKey, KeyCounts]) -> None:
    insert_or_replace(
        session,
        WindowCountRow,
        [
            {**key._asdict(), "windows": len(counts), "data": counts.to_bytes()}
            for key, counts in sorted(rows.items())
        ],
    )


def _merge_lookups(
    session: Session,
    reported: Sequence[DomainWindows],
    versions: dict[tuple[str, int, str], _Version],
) -> None:
    """Add the numbers of lookups and hits to those of the Domains' versions."""
    added: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for one in reported:
        version = versions.get(_identity(one))
        if version is not None:
            added[version.id][0] += one.lookups
            added[version.id][1] += min(one.hits, one.lookups)
    rows = []
    for version_id, (lookups, hits) in sorted(added.items()):
        before = session.get(DomainLookupsRow, version_id)
        total = min(lookups + (before.lookups if before else 0), _LARGEST_TOTAL)
        total_hits = min(hits + (before.hits if before else 0), total)
        rows.append(
            {"domain_version_id": version_id, "lookups": total, "hits": total_hits, "updated_at": utc_now()}
        )
    insert_or_replace(session, DomainLookupsRow, rows)


def _chunks(values: Sequence[str]) -> Iterable[Sequence[str]]:
    return (
        values[start : start + _ROWS_PER_STATEMENT] for start in range(0, len(values), _ROWS_PER_STATEMENT)
    )


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), tzinfo=UTC)
