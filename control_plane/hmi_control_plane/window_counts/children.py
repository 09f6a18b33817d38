"""The children of a Domain that share its layers, and so its windows and their vectors."""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import and_, select
from sqlalchemy.orm import Session

from hmi_api.internal.runs import DomainRunSpec, RunView
from hmi_control_plane.catalog.tables import DomainRow, DomainVersion, TrainingRun


@dataclass(frozen=True)
class Child:
    """A child whose current version has its parent's layers, together with its own such descendants."""

    domain_ids: frozenset[int]
    """Row ids of the child and of the descendants."""
    takes_in_from: int | None
    """Lookups from which its own refreshes take in a window that its parent's table does not have.

    None if it is not refreshed, or belongs to another tenant than the parent: then the privacy rule may give
    its runs other windows than the parent's.
    """


def children_sharing_layers(session: Session, domain: DomainRow, layers_digest: str) -> list[Child]:
    """Return the children of a Domain whose current version has these layers."""
    children = _sharing(session, [domain.key], layers_digest)
    return [_with_descendants(session, domain, child, layers_digest) for child in children]


def _sharing(session: Session, parents: Iterable[str], layers_digest: str) -> list[DomainRow]:
    current = and_(
        DomainVersion.domain_id == DomainRow.id,
        DomainVersion.version == DomainRow.current_version,
        DomainVersion.layers_digest == layers_digest,
    )
    query = select(DomainRow).join(DomainVersion, current).where(DomainRow.parent.in_(parents))
    return list(session.scalars(query.order_by(DomainRow.key)))


def _with_descendants(session: Session, domain: DomainRow, child: DomainRow, layers_digest: str) -> Child:
    found, level = {child.id}, [child]
    while level:
        below = _sharing(session, [row.key for row in level], layers_digest)
        level = [row for row in below if row.id not in found and row.id != domain.id]
        found.update(row.id for row in level)
    takes_in = _takes_in_from(session, child) if child.tenant == domain.tenant else None
    return Child(frozenset(found), takes_in)


def _takes_in_from(session: Session, child: DomainRow) -> int | None:
    """Return ``plot.minFrequency`` of a child whose last run had ``plot.refresh``, else None."""
    query = select(TrainingRun).where(TrainingRun.uid == child.uid)
    run = session.scalar(query.order_by(TrainingRun.created_at.desc(), TrainingRun.id).limit(1))
    spec = RunView.model_validate(run).spec if run is not None else None
    if not isinstance(spec, DomainRunSpec) or spec.spec.plot.refresh is None:
        return None
    return spec.spec.plot.min_frequency
