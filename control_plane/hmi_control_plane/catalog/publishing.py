"""What every publication of a version does: its columns, its tables, its artifacts, and making it current."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from hmi_api.internal.runs import RunResult
from hmi_control_plane.catalog import artifacts, placement
from hmi_control_plane.catalog.database import utc_now
from hmi_control_plane.catalog.resources import ResourceRow, Version, next_version
from hmi_control_plane.catalog.tables import (
    AdapterRow,
    AdapterVersion,
    DomainVersion,
    DomainVersionTable,
    TrainingRun,
)


def columns_of_run(session: Session, row: ResourceRow, run: TrainingRun, result: RunResult) -> dict[str, Any]:
    """Return the columns that versions of both kinds take from the run that made them."""
    return {
        "version": next_version(session, row),
        "spec_digest": run.spec_digest,
        "metrics": result.metrics,
        "data_read": [read.model_dump(mode="json", by_alias=True) for read in result.data],
        "run_id": run.id,
        "created_at": utc_now(),
    }


def make_current(session: Session, row: ResourceRow, version: Version) -> None:
    """Make a version the current one, and have runtimes serve it."""
    row.current_version = version.version
    if isinstance(version, DomainVersion):
        placement.move_to_domain_version(session, version)
    elif isinstance(row, AdapterRow):
        placement.update_placements(session, [row])


def artifact_digests(session: Session, version: Version) -> list[str]:
    """Return the digests of a version's artifacts; a Domain's layers first, then its chain of tables."""
    if isinstance(version, AdapterVersion):
        return [version.artifact_digest] if version.artifact_digest is not None else []
    tables = session.scalars(
        select(DomainVersionTable.artifact_digest)
        .where(DomainVersionTable.domain_version_id == version.id)
        .order_by(DomainVersionTable.position)
    )
    return [version.layers_digest, *tables]


def add_tables(session: Session, version: DomainVersion, digests: Sequence[str]) -> None:
    """Add a version's chain of tables: its own first, then its ancestors', nearest first."""
    session.add_all(
        DomainVersionTable(domain_version_id=version.id, position=position, artifact_digest=digest)
        for position, digest in enumerate(digests)
    )


def publish_copy(session: Session, row: ResourceRow, old: Version, **changes: Any) -> Version:
    """Publish a copy of an earlier version under the next number; ``changes`` are columns that differ."""
    columns = {column.key for column in type(old).__table__.columns} - {"id"}
    copied = {column: getattr(old, column) for column in columns}
    changed = {"version": next_version(session, row), "created_at": utc_now(), **changes}
    new = type(old)(**copied | changed)
    digests = artifact_digests(session, old)
    session.add(new)
    session.flush()
    if isinstance(new, DomainVersion):
        add_tables(session, new, digests[1:])
    artifacts.retain(session, digests)
    make_current(session, row, new)
    return new
