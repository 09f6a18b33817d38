"""What Domains and TaskAdapters have in common: rows that are declared, and their versions."""

from collections.abc import Sequence
from typing import TypeVar, overload

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from hmi_api.internal.catalog import AdapterRecord, DomainRecord
from hmi_control_plane.catalog.runs import adopt_runs
from hmi_control_plane.catalog.tables import AdapterRow, AdapterVersion, DomainRow, DomainVersion
from hmi_control_plane.http.errors import NotFound

ResourceRow = DomainRow | AdapterRow
ResourceT = TypeVar("ResourceT", bound=DomainRow | AdapterRow)
Version = DomainVersion | AdapterVersion


def find_resource(session: Session, kind: type[ResourceT], namespace: str, name: str) -> ResourceT | None:
    """Return the resource declared as ``namespace/name``, or None."""
    return session.scalar(select(kind).where(kind.namespace == namespace, kind.name == name))


def get_resource(session: Session, kind: type[ResourceT], namespace: str, name: str) -> ResourceT:
    """Return the resource; raises NotFound (UnknownDomain, UnknownAdapter)."""
    row = find_resource(session, kind, namespace, name)
    if row is None:
        word = "Domain" if kind is DomainRow else "TaskAdapter"
        raise NotFound(
            "UnknownDomain" if kind is DomainRow else "UnknownAdapter",
            f"There is no {word} {namespace}/{name}.",
        )
    return row


def take_over(
    session: Session, row: ResourceRow, record: DomainRecord | AdapterRecord, fixed: Sequence[str]
) -> bool:
    """Give a row to the object that ``record`` declares; return False if a field in ``fixed`` differs.

    A record with another uid belongs to a new object, and the deletion of the old one was not observed. The
    new object takes over the row, which keeps serving, and its runs. After False the caller deletes the row.
    """
    if row.uid == record.uid:
        return True
    if any(getattr(row, field) != getattr(record, field) for field in fixed):
        return False
    adopt_runs(session, row.uid, record.uid)
    row.uid = record.uid
    return True


def update_row(row: ResourceRow, record: DomainRecord | AdapterRecord) -> None:
    """Copy the fields of a record to the row, except its identity."""
    for field, value in record.model_dump(mode="json", exclude={"uid", "tenant"}).items():
        setattr(row, field, value)


@overload
def versions_of(row: DomainRow) -> Select[DomainVersion]: ...
@overload
def versions_of(row: AdapterRow) -> Select[AdapterVersion]: ...
def versions_of(row: ResourceRow) -> Select[DomainVersion] | Select[AdapterVersion]:
    """Return the statement that selects all versions of a resource."""
    if isinstance(row, DomainRow):
        return select(DomainVersion).where(DomainVersion.domain_id == row.id)
    return select(AdapterVersion).where(AdapterVersion.adapter_id == row.id)


@overload
def current_version(session: Session, row: DomainRow) -> DomainVersion | None: ...
@overload
def current_version(session: Session, row: AdapterRow) -> AdapterVersion | None: ...
def current_version(session: Session, row: ResourceRow) -> Version | None:
    """Return the version that is published at present, or None."""
    return session.scalar(versions_of(row).filter_by(version=row.current_version))


def next_version(session: Session, row: ResourceRow) -> int:
    """Return the number of the next version of a resource."""
    numbers = versions_of(row).subquery().c.version
    return (session.scalar(select(func.max(numbers))) or 0) + 1
