"""The tree of Domains: which of them share layers, and so windows and their vectors."""

from collections.abc import Collection

from sqlalchemy import and_, func, select
from sqlalchemy.orm import Session

from hmi_api.internal.catalog import DomainTree, TableLevel
from hmi_control_plane.catalog.resources import current_version
from hmi_control_plane.catalog.tables import (
    Artifact,
    DomainLookupsRow,
    DomainRow,
    DomainVersion,
    DomainVersionTable,
)


def children_with_layers(session: Session, parents: Collection[str], layers_digest: str) -> list[DomainRow]:
    """Return the Domains whose parent is one of ``parents`` and whose current version has these layers."""
    current = and_(_IS_CURRENT, DomainVersion.layers_digest == layers_digest)
    query = select(DomainRow).join(DomainVersion, current).where(DomainRow.parent.in_(parents))
    return list(session.scalars(query.order_by(DomainRow.key)))


def descendants_with_layers(session: Session, domain: DomainRow, layers_digest: str) -> dict[int, DomainRow]:
    """Return the Domains below ``domain`` by row id, if they and all Domains between have these layers."""
    found: dict[int, DomainRow] = {}
    level = [domain]
    while level:
        below = children_with_layers(session, [row.key for row in level], layers_digest)
        level = [row for row in below if row.id not in found and row.id != domain.id]
        found |= {row.id: row for row in level}
    return found


def load_tree(session: Session, domain: DomainRow) -> DomainTree | None:
    """Return what a Domain's current version shares with others; None without a version."""
    version = current_version(session, domain)
    if version is None:
        return None
    below = descendants_with_layers(session, domain, version.layers_digest)
    return DomainTree(
        levels=_levels(session, domain, version), below=len(below), lookups=_lookups(session, below)
    )


def _levels(session: Session, domain: DomainRow, version: DomainVersion) -> list[TableLevel]:
    query = (
        select(DomainVersionTable.artifact_digest, Artifact.bytes)
        .join(Artifact, Artifact.digest == DomainVersionTable.artifact_digest)
        .where(DomainVersionTable.domain_version_id == version.id)
        .order_by(DomainVersionTable.position)
    )
    tables = [(digest, size) for digest, size in session.execute(query)]
    made = _made_for(session, [digest for digest, _ in tables[1:]])
    own = TableLevel(domain=domain.key, entries=version.entries, bytes=tables[0][1]) if tables else None
    levels = []
    for digest, size in tables[1:]:
        key, entries = made.get(digest, ("", None))
        levels.append(TableLevel(domain=key, entries=entries, bytes=size))
    return [own, *levels] if own is not None else []


def _made_for(session: Session, digests: Collection[str]) -> dict[str, tuple[str, int | None]]:
    """Return, by table digest, the Domain that the table was made for and its number of windows."""
    if not digests:
        return {}
    query = (
        select(DomainVersionTable.artifact_digest, DomainRow.key, DomainVersion.entries)
        .join(DomainVersion, DomainVersion.id == DomainVersionTable.domain_version_id)
        .join(DomainRow, DomainRow.id == DomainVersion.domain_id)
        .where(DomainVersionTable.artifact_digest.in_(digests), DomainVersionTable.position == 0)
        .order_by(DomainVersion.id.desc())
    )
    return {digest: (key, entries) for digest, key, entries in session.execute(query)}


def _lookups(session: Session, domain_ids: Collection[int]) -> int:
    if not domain_ids:
        return 0
    query = (
        select(func.sum(DomainLookupsRow.lookups))
        .join(DomainVersion, DomainVersion.id == DomainLookupsRow.domain_version_id)
        .join(DomainRow, _IS_CURRENT)
        .where(DomainRow.id.in_(domain_ids))
    )
    return int(session.scalar(query) or 0)


_IS_CURRENT = and_(
    DomainVersion.domain_id == DomainRow.id, DomainVersion.version == DomainRow.current_version
)
