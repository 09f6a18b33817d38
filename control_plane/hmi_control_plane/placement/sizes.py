"""How many bytes serving a domain version takes."""

from collections.abc import Collection

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hmi_control_plane.catalog.tables import Artifact, DomainVersion, DomainVersionTable


def domain_bytes(session: Session, version_ids: Collection[int]) -> dict[int, int]:
    """Return each domain version's bytes: its layers and every table of its chain.

    A table that two domains inherit is counted for each: an upper bound, which errs towards room to spare.
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
