"""The policy applied: placements in the catalog, their revisions, and the counters that keep this cheap.

Whoever changes placements takes ``lock`` first. On PostgreSQL that is one advisory lock, on SQLite the write
transaction itself; with it, a runtime's revisions are committed in their order, so that a reader who has
seen revision N has seen everything up to N.
"""

from collections.abc import Sequence
from itertools import groupby

from sqlalchemy import case, exists, func, select, update
from sqlalchemy.orm import Session

from hmi_control_plane.catalog.database import AdvisoryLock, Database, acquire_lock
from hmi_control_plane.catalog.tables import AdapterRow, DomainPlacement, DomainVersion, Placement, Runtime
from hmi_control_plane.placement.batch import PlacementBatch
from hmi_control_plane.placement.sizes import domain_bytes

_FILL_BATCH = 200


def lock(session: Session) -> None:
    """Wait until no other transaction changes placements; held until this one ends."""
    acquire_lock(session, AdvisoryLock.PLACEMENT)


def settle(session: Session, adapters: Sequence[AdapterRow], *, changed: bool = True) -> None:
    """Bring the placements of ``adapters`` to what their current versions and replicas ask for.

    ``changed`` makes the runtimes that hold them read them again. Costs a number of statements that does
    not depend on how many adapters are registered. Call ``lock`` before.
    """
    session.flush()
    PlacementBatch(session, adapters).settle(changed=changed)


def fill(database: Database) -> None:
    """Place every adapter that lacks replicas, in small transactions; to be called when runtimes changed."""
    last = 0
    while True:
        with database.write() as session:
            lock(session)
            if not session.scalar(select(exists().where(~Runtime.lost, ~Runtime.draining))):
                return
            wanting = select(AdapterRow).where(AdapterRow.missing_replicas > 0, AdapterRow.id > last)
            adapters = session.scalars(wanting.order_by(AdapterRow.id).limit(_FILL_BATCH)).all()
            if not adapters:
                return
            settle(session, adapters, changed=False)
            last = adapters[-1].id


def recount(session: Session, runtime_id: str) -> None:
    """Count again what the adapters placed on a runtime lack, after it was lost, drained or came back."""
    session.flush()
    serving = (
        select(func.count())
        .select_from(Placement)
        .join(Runtime, Runtime.id == Placement.runtime_id)
        .where(Placement.adapter_id == AdapterRow.id, ~Runtime.lost, ~Runtime.draining)
        .scalar_subquery()
    )
    here = select(Placement.adapter_id).where(
        Placement.runtime_id == runtime_id, Placement.adapter_id.is_not(None)
    )
    lacking = AdapterRow.replicas - serving
    session.execute(
        update(AdapterRow)
        .where(AdapterRow.id.in_(here), AdapterRow.current_version.is_not(None))
        .values(missing_replicas=case((lacking > 0, lacking), else_=0))
        .execution_options(synchronize_session=False)
    )


def replace_domain_version(session: Session, new: DomainVersion) -> None:
    """Serve what stands on older versions with the same layers on ``new``, whose table is newer.

    A fixed number of statements a runtime that holds the domain. Call ``lock`` before.
    """
    session.flush()
    older = select(DomainVersion.id).where(
        DomainVersion.domain_id == new.domain_id,
        DomainVersion.layers_digest == new.layers_digest,
        DomainVersion.version < new.version,
    )
    held = session.scalars(select(DomainPlacement).where(DomainPlacement.domain_version_id.in_(older))).all()
    size = domain_bytes(session, [new.id]).get(new.id, 0)
    by_runtime = groupby(sorted(held, key=lambda row: row.runtime_id), key=lambda row: row.runtime_id)
    for runtime_id, rows in by_runtime:
        _replace_on(session, runtime_id, list(rows), new.id, size)


def _replace_on(
    session: Session, runtime_id: str, old: Sequence[DomainPlacement], new_id: int, new_bytes: int
) -> None:
    runtime = session.get_one(Runtime, runtime_id, populate_existing=True)
    runtime.desired_revision += 1
    runtime.placed_bytes += new_bytes - sum(row.bytes for row in old)
    session.add(
        DomainPlacement(
            runtime_id=runtime_id,
            domain_version_id=new_id,
            adapters=sum(row.adapters for row in old),
            bytes=new_bytes,
            revision=runtime.desired_revision,
        )
    )
    session.execute(
        update(Placement)
        .where(
            Placement.runtime_id == runtime_id,
            Placement.domain_version_id.in_([row.domain_version_id for row in old]),
        )
        .values(domain_version_id=new_id, revision=runtime.desired_revision)
    )
    for row in old:
        session.delete(row)
