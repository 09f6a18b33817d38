"""The children of a Domain that share its layers, and so its windows and their vectors."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from hmi_api.internal.runs import DomainRunSpec, RunView
from hmi_control_plane.catalog.tables import DomainRow, TrainingRun
from hmi_control_plane.catalog.tree import children_with_layers, descendants_with_layers


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
    return [
        Child(
            frozenset({child.id, *descendants_with_layers(session, child, layers_digest)} - {domain.id}),
            _takes_in_from(session, child) if child.tenant == domain.tenant else None,
        )
        for child in children_with_layers(session, [domain.key], layers_digest)
    ]


def _takes_in_from(session: Session, child: DomainRow) -> int | None:
    """Return ``plot.minFrequency`` of a child whose last run had ``plot.refresh``, else None."""
    query = select(TrainingRun).where(TrainingRun.uid == child.uid)
    run = session.scalar(query.order_by(TrainingRun.created_at.desc(), TrainingRun.id).limit(1))
    spec = RunView.model_validate(run).spec if run is not None else None
    if not isinstance(spec, DomainRunSpec) or spec.spec.plot.refresh is None:
        return None
    return spec.spec.plot.min_frequency
