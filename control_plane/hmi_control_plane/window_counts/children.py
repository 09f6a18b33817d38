"""The Domains below a Domain that share its layers, and so its windows and their vectors."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from hmi_api.internal.runs import DomainRunSpec, RunView
from hmi_control_plane.catalog.tables import DomainRow, TrainingRun
from hmi_control_plane.catalog.tree import children_with_layers


@dataclass(frozen=True)
class PlaceDomains:
    """The Domains whose counts are one ``Place``."""

    domain_ids: frozenset[int]
    """Row ids."""
    takes_in_from: int | None = None
    """Lookups from which a child's own refreshes take in a window that its parent's table does not have.

    None if it takes in none: it is not refreshed, or belongs to another tenant than the parent, and then the
    privacy rule may give its runs other windows than the parent's.
    """


def places_sharing_layers(session: Session, domain: DomainRow, layers_digest: str) -> list[PlaceDomains]:
    """Return the places of a Domain and of the Domains below whose current version has these layers.

    The first is the Domain itself, with all children that take in nothing by themselves: they need not be
    told apart, and other tenants may have made thousands. Each of the others is a child with its descendants.
    """
    own = frozenset({domain.id})
    children = []
    for child, ids in _members(session, domain, layers_digest).items():
        takes_in_from = _takes_in_from(session, child) if child.tenant == domain.tenant else None
        if takes_in_from is None:
            own |= ids
        else:
            children.append(PlaceDomains(ids, takes_in_from))
    return [PlaceDomains(own), *children]


def _members(session: Session, domain: DomainRow, layers_digest: str) -> dict[DomainRow, frozenset[int]]:
    """Return, by child, the row ids of the child and of its descendants with these layers."""
    level = children_with_layers(session, [domain.key], layers_digest)
    child_of = {row.key: row for row in level}  # of each Domain below
    seen = {domain.id}
    members: dict[DomainRow, set[int]] = {row: set() for row in level}
    while level:
        seen |= {row.id for row in level}
        for row in level:
            members[child_of[row.key]].add(row.id)
        below = children_with_layers(session, [row.key for row in level], layers_digest)
        level = [row for row in below if row.id not in seen]
        child_of |= {row.key: child_of[row.parent] for row in level if row.parent is not None}
    return {child: frozenset(ids) for child, ids in members.items()}


def _takes_in_from(session: Session, child: DomainRow) -> int | None:
    """Return ``plot.minFrequency`` of a child whose last run had ``plot.refresh``, else None."""
    query = select(TrainingRun).where(TrainingRun.uid == child.uid)
    run = session.scalar(query.order_by(TrainingRun.created_at.desc(), TrainingRun.id).limit(1))
    spec = RunView.model_validate(run).spec if run is not None else None
    if not isinstance(spec, DomainRunSpec) or spec.spec.plot.refresh is None:
        return None
    return spec.spec.plot.min_frequency
