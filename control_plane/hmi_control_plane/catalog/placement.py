"""Placements in the catalog: which runtimes should load which adapter, their revisions and their counters.

Every transaction that changes placements calls ``lock`` first. So the revisions of a runtime are committed in
their order, and a reader of revision N has read everything up to N.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import case, exists, func, select, update
from sqlalchemy.orm import Session

from hmi_control_plane.catalog.database import AdvisoryLock, Database, acquire_lock
from hmi_control_plane.catalog.placement_policy import Candidate, PlacementRequest, Room, choose_runtimes
from hmi_control_plane.catalog.tables import (
    IS_CURRENT,
    AdapterRow,
    AdapterVersion,
    Artifact,
    DomainPlacement,
    DomainRow,
    DomainVersion,
    DomainVersionTable,
    Placement,
    Runtime,
)

_BATCH_SIZE = 200


def lock(session: Session) -> None:
    """Lock placements until the transaction ends."""
    acquire_lock(session, AdvisoryLock.PLACEMENT)


def update_placements(session: Session, adapters: Sequence[AdapterRow], *, changed: bool = True) -> None:
    """Add, update and remove placements until ``adapters`` have the replicas of their current versions.

    ``changed`` makes the runtimes read placements again that stay. The number of statements does not depend
    on how many adapters the catalog has. Call ``lock`` first.
    """
    session.flush()
    _PlacementBatch(session, adapters).update(changed=changed)


def place_missing_replicas(database: Database) -> None:
    """Place every adapter that lacks replicas, in small transactions. Call it after runtimes changed."""
    last = 0
    while True:
        with database.write() as session:
            lock(session)
            if not session.scalar(select(exists().where(~Runtime.lost, ~Runtime.draining))):
                return
            lacking_replicas = select(AdapterRow).where(AdapterRow.missing_replicas > 0, AdapterRow.id > last)
            adapters = session.scalars(lacking_replicas.order_by(AdapterRow.id).limit(_BATCH_SIZE)).all()
            if not adapters:
                return
            update_placements(session, adapters, changed=False)
            last = adapters[-1].id


def recount_missing_replicas(session: Session, runtime_id: str) -> None:
    """Recompute ``missing_replicas`` of the adapters on a runtime that was lost, drained or came back."""
    session.flush()
    active = (
        select(func.count())
        .select_from(Placement)
        .join(Runtime, Runtime.id == Placement.runtime_id)
        .where(Placement.adapter_id == AdapterRow.id, ~Runtime.lost, ~Runtime.draining)
        .scalar_subquery()
    )
    on_runtime = select(Placement.adapter_id).where(
        Placement.runtime_id == runtime_id, Placement.adapter_id.is_not(None)
    )
    lacking = AdapterRow.replicas - active
    session.execute(
        update(AdapterRow)
        .where(AdapterRow.id.in_(on_runtime), AdapterRow.current_version.is_not(None))
        .values(missing_replicas=case((lacking > 0, lacking), else_=0))
        .execution_options(synchronize_session=False)
    )


def move_to_domain_version(session: Session, new: DomainVersion) -> None:
    """Move adapters from older domain versions with the same layers to ``new``, which has a newer table.

    Takes a fixed number of statements for each runtime that has the domain. Call ``lock`` first.
    """
    session.flush()
    older = select(DomainVersion.id).where(
        DomainVersion.domain_id == new.domain_id,
        DomainVersion.layers_digest == new.layers_digest,
        DomainVersion.version < new.version,
    )
    placements = session.scalars(
        select(DomainPlacement).where(DomainPlacement.domain_version_id.in_(older))
    ).all()
    size = load_domain_bytes(session, [new.id]).get(new.id, 0)
    by_runtime = groupby(sorted(placements, key=lambda row: row.runtime_id), key=lambda row: row.runtime_id)
    for runtime_id, rows in by_runtime:
        _move_on_runtime(session, runtime_id, list(rows), new.id, size)


def _move_on_runtime(
    session: Session, runtime_id: str, old: Sequence[DomainPlacement], new_id: int, new_bytes: int
) -> None:
    runtime = session.get_one(Runtime, runtime_id, populate_existing=True)
    runtime.desired_revision += 1
    _add_table_bytes(runtime, new_bytes - sum(row.bytes for row in old))
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


def _add_table_bytes(runtime: Runtime, size: int) -> None:
    runtime.placed_bytes += size
    runtime.placed_table_bytes += size


def _candidate(runtime: Runtime, *, has_domain: bool) -> Candidate:
    adapters = runtime.placed_bytes - runtime.placed_table_bytes
    tables = runtime.placed_table_bytes
    host, table = runtime.host_capacity_bytes, runtime.table_capacity_bytes
    shares_capacity = host is None or table is None
    return Candidate(
        id=runtime.id,
        host=Room(runtime.capacity_bytes - tables if host is None or table is None else host, adapters),
        tables=Room(runtime.capacity_bytes - adapters if host is None or table is None else table, tables),
        load=runtime.queue_depth,
        has_domain=has_domain,
        holds_tables_in_part=not shares_capacity,
    )


@dataclass(frozen=True, slots=True)
class _Needs:
    """What an adapter's current version needs on each of its runtimes."""

    domain_version_id: int
    bytes: int


class _PlacementBatch:
    """Some adapters and all runtimes in memory, loaded with a fixed number of statements, to be placed."""

    def __init__(self, session: Session, adapters: Sequence[AdapterRow]) -> None:
        self._session = session
        self._adapters = adapters
        self._runtimes = {
            runtime.id: runtime
            for runtime in session.scalars(select(Runtime).execution_options(populate_existing=True))
        }
        self._placements: dict[int, list[Placement]] = {adapter.id: [] for adapter in adapters}
        for placement in session.scalars(select(Placement).where(Placement.adapter_id.in_(self._placements))):
            if placement.adapter_id is not None:
                self._placements[placement.adapter_id].append(placement)
        self._needs = self._load_needs()
        versions = {needs.domain_version_id for needs in self._needs.values()}
        versions |= {
            p.domain_version_id
            for placements in self._placements.values()
            for p in placements
            if p.domain_version_id
        }
        self._domain_bytes = load_domain_bytes(session, versions)
        self._domains = {
            (row.runtime_id, row.domain_version_id): row
            for row in session.scalars(
                select(DomainPlacement).where(DomainPlacement.domain_version_id.in_(versions))
            )
        }
        self._incremented: set[str] = set()

    def update(self, *, changed: bool) -> None:
        """Update the placements of all adapters of the batch."""
        for adapter in self._adapters:
            self._update_one(adapter, changed=changed)
        self._session.flush()

    def _update_one(self, adapter: AdapterRow, *, changed: bool) -> None:
        needs = self._needs.get(adapter.id)
        placements = self._placements[adapter.id]
        if needs is None:
            for placement in placements:
                self._remove(placement)
            adapter.missing_replicas = 0
            return
        for placement in placements:
            if changed or placement.domain_version_id != needs.domain_version_id:
                self._point(placement, needs)
        active = [placement for placement in placements if self._is_active(placement.runtime_id)]
        missing = adapter.replicas - len(active)
        if missing > 0:
            missing -= self._add(adapter, needs, missing)
        surplus = sorted(active, key=self._removal_rank, reverse=True)[: max(-missing, 0)]
        # A lost runtime keeps its placements until all replicas are placed elsewhere.
        stranded = [p for p in placements if missing <= 0 and self._runtimes[p.runtime_id].lost]
        for placement in [*surplus, *stranded]:
            self._remove(placement)
        adapter.missing_replicas = max(missing, 0)

    def _add(self, adapter: AdapterRow, needs: _Needs, wanted: int) -> int:
        """Place ``adapter`` on up to ``wanted`` more runtimes; return on how many."""
        taken = {placement.runtime_id for placement in self._placements[adapter.id]}
        request = PlacementRequest(
            adapter_bytes=needs.bytes,
            domain_bytes=self._domain_bytes.get(needs.domain_version_id, 0),
            replicas=wanted,
        )
        candidates = [
            _candidate(runtime, has_domain=(runtime.id, needs.domain_version_id) in self._domains)
            for runtime in self._runtimes.values()
            if runtime.id not in taken and self._is_active(runtime.id)
        ]
        chosen = choose_runtimes(request, candidates)
        key = f"{adapter.tenant}/{adapter.name}"
        for runtime_id in chosen:
            # The row may still exist as a removal that the runtime has not read yet.
            placement = self._session.get(Placement, (runtime_id, key))
            if placement is None:
                placement = Placement(runtime_id=runtime_id, adapter_key=key, bytes=0)
                self._session.add(placement)
            placement.adapter_id = adapter.id
            self._point(placement, needs)
        return len(chosen)

    def _point(self, placement: Placement, needs: _Needs) -> None:
        runtime_id = placement.runtime_id
        revision = self._revision(runtime_id)
        if placement.domain_version_id != needs.domain_version_id:
            self._remove_domain(placement)
            self._add_domain(runtime_id, needs.domain_version_id, revision)
        self._runtimes[runtime_id].placed_bytes += needs.bytes - placement.bytes
        placement.domain_version_id = needs.domain_version_id
        placement.bytes = needs.bytes
        placement.revision = revision

    def _remove(self, placement: Placement) -> None:
        self._remove_domain(placement)
        self._runtimes[placement.runtime_id].placed_bytes -= placement.bytes
        placement.adapter_id = None
        placement.domain_version_id = None
        placement.bytes = 0
        placement.revision = self._revision(placement.runtime_id)

    def _add_domain(self, runtime_id: str, domain_version_id: int, revision: int) -> None:
        row = self._domains.get((runtime_id, domain_version_id))
        if row is None:
            size = self._domain_bytes.get(domain_version_id, 0)
            row = DomainPlacement(
                runtime_id=runtime_id,
                domain_version_id=domain_version_id,
                adapters=0,
                bytes=size,
                revision=revision,
            )
            self._session.add(row)
            self._domains[runtime_id, domain_version_id] = row
            _add_table_bytes(self._runtimes[runtime_id], size)
        row.adapters += 1

    def _remove_domain(self, placement: Placement) -> None:
        if placement.domain_version_id is None:
            return
        row = self._domains[placement.runtime_id, placement.domain_version_id]
        row.adapters -= 1
        if row.adapters == 0:
            _add_table_bytes(self._runtimes[placement.runtime_id], -row.bytes)
            del self._domains[placement.runtime_id, placement.domain_version_id]
            if row in self._session.new:
                self._session.expunge(row)
            else:
                self._session.delete(row)
                self._session.flush()  # the same key may be inserted again below

    def _revision(self, runtime_id: str) -> int:
        """Increment the runtime's revision once for the whole batch; return it."""
        runtime = self._runtimes[runtime_id]
        if runtime_id not in self._incremented:
            runtime.desired_revision += 1
            self._incremented.add(runtime_id)
        return runtime.desired_revision

    def _is_active(self, runtime_id: str) -> bool:
        runtime = self._runtimes[runtime_id]
        return not runtime.lost and not runtime.draining

    def _removal_rank(self, placement: Placement) -> tuple[int, int, str]:
        runtime = self._runtimes[placement.runtime_id]
        return (runtime.placed_bytes - runtime.capacity_bytes, runtime.queue_depth, runtime.id)

    def _load_needs(self) -> dict[int, _Needs]:
        """Return the needs by adapter id; adapters without a version or domain version are left out."""
        newest = (
            select(DomainVersion.id)
            .join(DomainRow, DomainRow.id == DomainVersion.domain_id)
            .where(
                DomainRow.key == AdapterRow.domain,
                DomainVersion.layers_digest == AdapterVersion.layers_digest,
            )
            .order_by(DomainVersion.version.desc())
            .limit(1)
            .correlate(AdapterRow, AdapterVersion)
            .scalar_subquery()
        )
        rows = self._session.execute(
            select(AdapterRow.id, newest, Artifact.bytes)
            .join(AdapterVersion, IS_CURRENT)
            .join(Artifact, Artifact.digest == AdapterVersion.artifact_digest)
            .where(AdapterRow.id.in_([adapter.id for adapter in self._adapters]))
        )
        return {
            adapter_id: _Needs(domain_version_id=version_id, bytes=size)
            for adapter_id, version_id, size in rows
            if version_id is not None
        }


def load_domain_bytes(session: Session, version_ids: Collection[int]) -> dict[int, int]:
    """Return the bytes of domain versions: the layers and every table of the chain.

    A table that two domains share is counted for each, so that the result is an upper bound.
    """
    if not version_ids:
        return {}
    layers = session.execute(
        select(DomainVersion.id, Artifact.bytes)
        .join(Artifact, Artifact.digest == DomainVersion.layers_digest)
        .where(DomainVersion.id.in_(version_ids))
    )
    sizes: dict[int, int] = {row.id: row.bytes for row in layers}
    tables = session.execute(
        select(DomainVersionTable.domain_version_id, func.sum(Artifact.bytes))
        .join(Artifact, Artifact.digest == DomainVersionTable.artifact_digest)
        .where(DomainVersionTable.domain_version_id.in_(version_ids))
        .group_by(DomainVersionTable.domain_version_id)
    )
    for version_id, size in tables:
        sizes[version_id] = sizes.get(version_id, 0) + int(size)
    return sizes
