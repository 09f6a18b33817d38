"""A few adapters and all runtimes in memory, while their placements are brought in order."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from hmi_control_plane.catalog.tables import (
    AdapterRow,
    AdapterVersion,
    Artifact,
    DomainPlacement,
    DomainRow,
    DomainVersion,
    Placement,
    Runtime,
)
from hmi_control_plane.placement.policy import Candidate, Demand, place
from hmi_control_plane.placement.sizes import domain_bytes


@dataclass(frozen=True, slots=True)
class _Serving:
    """What an adapter's current version needs where it is served."""

    domain_version_id: int
    bytes: int


class PlacementBatch:
    """Placements of some adapters, loaded with a fixed number of statements."""

    def __init__(self, session: Session, adapters: Sequence[AdapterRow]) -> None:
        self._session = session
        self._adapters = adapters
        self._runtimes = {
            runtime.id: runtime
            for runtime in session.scalars(select(Runtime).execution_options(populate_existing=True))
        }
        self._held: dict[int, list[Placement]] = {adapter.id: [] for adapter in adapters}
        for placement in session.scalars(select(Placement).where(Placement.adapter_id.in_(self._held))):
            if placement.adapter_id is not None:
                self._held[placement.adapter_id].append(placement)
        self._servings = self._load_servings()
        versions = {serving.domain_version_id for serving in self._servings.values()}
        versions |= {p.domain_version_id for held in self._held.values() for p in held if p.domain_version_id}
        self._domain_bytes = domain_bytes(session, versions)
        self._domains = {
            (row.runtime_id, row.domain_version_id): row
            for row in session.scalars(
                select(DomainPlacement).where(DomainPlacement.domain_version_id.in_(versions))
            )
        }
        self._revised: set[str] = set()

    def settle(self, *, changed: bool) -> None:
        """Add, refresh and remove placements until each adapter has what it asks for."""
        for adapter in self._adapters:
            self._settle_one(adapter, changed=changed)
        self._session.flush()

    def _settle_one(self, adapter: AdapterRow, *, changed: bool) -> None:
        serving = self._servings.get(adapter.id)
        held = self._held[adapter.id]
        if serving is None:
            for placement in held:
                self._remove(placement)
            adapter.missing_replicas = 0
            return
        for placement in held:
            if changed or placement.domain_version_id != serving.domain_version_id:
                self._point(placement, serving)
        active = [placement for placement in held if self._is_active(placement.runtime_id)]
        missing = adapter.replicas - len(active)
        if missing > 0:
            missing -= self._add(adapter, serving, missing)
        surplus = sorted(active, key=self._burden, reverse=True)[: max(-missing, 0)]
        # A lost runtime keeps its placements until they have somewhere else to be.
        stranded = [p for p in held if missing <= 0 and self._runtimes[p.runtime_id].lost]
        for placement in [*surplus, *stranded]:
            self._remove(placement)
        adapter.missing_replicas = max(missing, 0)

    def _add(self, adapter: AdapterRow, serving: _Serving, wanted: int) -> int:
        """Place ``adapter`` on up to ``wanted`` more runtimes; return on how many."""
        taken = {placement.runtime_id for placement in self._held[adapter.id]}
        demand = Demand(
            adapter_bytes=serving.bytes,
            domain_bytes=self._domain_bytes.get(serving.domain_version_id, 0),
            replicas=wanted,
        )
        candidates = [
            Candidate(
                id=runtime.id,
                capacity_bytes=runtime.capacity_bytes,
                placed_bytes=runtime.placed_bytes,
                load=runtime.queue_depth,
                holds_domain=(runtime.id, serving.domain_version_id) in self._domains,
            )
            for runtime in self._runtimes.values()
            if runtime.id not in taken and self._is_active(runtime.id)
        ]
        chosen = place(demand, candidates)
        key = f"{adapter.tenant}/{adapter.name}"
        for runtime_id in chosen:
            # The row may still be there as a removal that the runtime has not read yet.
            placement = self._session.get(Placement, (runtime_id, key))
            if placement is None:
                placement = Placement(runtime_id=runtime_id, adapter_key=key, bytes=0)
                self._session.add(placement)
            placement.adapter_id = adapter.id
            self._point(placement, serving)
        return len(chosen)

    def _point(self, placement: Placement, serving: _Serving) -> None:
        runtime_id = placement.runtime_id
        revision = self._revision(runtime_id)
        if placement.domain_version_id != serving.domain_version_id:
            self._release_domain(placement)
            self._hold_domain(runtime_id, serving.domain_version_id, revision)
        self._runtimes[runtime_id].placed_bytes += serving.bytes - placement.bytes
        placement.domain_version_id = serving.domain_version_id
        placement.bytes = serving.bytes
        placement.revision = revision

    def _remove(self, placement: Placement) -> None:
        self._release_domain(placement)
        self._runtimes[placement.runtime_id].placed_bytes -= placement.bytes
        placement.adapter_id = None
        placement.domain_version_id = None
        placement.bytes = 0
        placement.revision = self._revision(placement.runtime_id)

    def _hold_domain(self, runtime_id: str, domain_version_id: int, revision: int) -> None:
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
            self._runtimes[runtime_id].placed_bytes += size
        row.adapters += 1

    def _release_domain(self, placement: Placement) -> None:
        if placement.domain_version_id is None:
            return
        row = self._domains[placement.runtime_id, placement.domain_version_id]
        row.adapters -= 1
        if row.adapters == 0:
            self._runtimes[placement.runtime_id].placed_bytes -= row.bytes
            del self._domains[placement.runtime_id, placement.domain_version_id]
            if row in self._session.new:
                self._session.expunge(row)
            else:
                self._session.delete(row)
                self._session.flush()  # the same key may be inserted again below

    def _revision(self, runtime_id: str) -> int:
        """Return the runtime's new revision, one for the whole batch."""
        runtime = self._runtimes[runtime_id]
        if runtime_id not in self._revised:
            runtime.desired_revision += 1
            self._revised.add(runtime_id)
        return runtime.desired_revision

    def _is_active(self, runtime_id: str) -> bool:
        runtime = self._runtimes[runtime_id]
        return not runtime.lost and not runtime.draining

    def _burden(self, placement: Placement) -> tuple[int, int, str]:
        runtime = self._runtimes[placement.runtime_id]
        return (runtime.placed_bytes - runtime.capacity_bytes, runtime.queue_depth, runtime.id)

    def _load_servings(self) -> dict[int, _Serving]:
        """Return what each adapter's current version needs; adapters that cannot be served are left out."""
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
            .join(
                AdapterVersion,
                and_(
                    AdapterVersion.adapter_id == AdapterRow.id,
                    AdapterVersion.version == AdapterRow.current_version,
                ),
            )
            .join(Artifact, Artifact.digest == AdapterVersion.artifact_digest)
            .where(AdapterRow.id.in_([adapter.id for adapter in self._adapters]))
        )
        return {
            adapter_id: _Serving(domain_version_id=version_id, bytes=size)
            for adapter_id, version_id, size in rows
            if version_id is not None
        }
