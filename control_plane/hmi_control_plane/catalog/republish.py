"""Publishing an earlier version again, where a spec is declared that was published before.

It is published under the next number, as a rollback of a Deployment is a revision of its own. So numbers only
grow, for runtimes and for whoever reads answers.
"""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from hmi_api.artifacts import ArtifactRef
from hmi_api.internal.catalog import PublishAgain
from hmi_api.names import domain_key
from hmi_control_plane import placement
from hmi_control_plane.catalog import artifacts
from hmi_control_plane.catalog.adapters import find_adapter
from hmi_control_plane.catalog.completion import next_version
from hmi_control_plane.catalog.domains import find_domain
from hmi_control_plane.catalog.tables import (
    AdapterRow,
    AdapterVersion,
    DomainRow,
    DomainVersion,
    DomainVersionTable,
)
from hmi_control_plane.catalog.times import now


@dataclass(frozen=True)
class Earlier:
    """A version that could be published again, and the artifacts that it needs."""

    version: int
    artifacts: list[ArtifactRef]


def earlier_adapter_version(
    session: Session, namespace: str, name: str, wanted: PublishAgain
) -> Earlier | None:
    """Return the newest version of a TaskAdapter that was made from the wanted spec and passed its gate."""
    found = _adapter_version(session, find_adapter(session, namespace, name), wanted)
    if found is None or found.artifact_digest is None:
        return None
    return Earlier(found.version, list(artifacts.load_refs(session, [found.artifact_digest]).values()))


def publish_adapter_again(
    session: Session, namespace: str, name: str, wanted: PublishAgain, version: int
) -> int | None:
    """Publish ``version`` again; return its new number, or None where it is not what is wanted any more.

    Where it is the current one already, nothing changes: the same call again gives the same answer.
    """
    placement.lock(session)
    row = find_adapter(session, namespace, name)
    old = _adapter_version(session, row, wanted)
    if row is None or old is None or old.artifact_digest is None or old.version < version:
        return None
    if old.version == row.current_version:
        return old.version
    new = AdapterVersion(
        adapter_id=row.id,
        version=next_version(session, AdapterVersion.version, AdapterVersion.adapter_id == row.id),
        spec_digest=old.spec_digest,
        artifact_digest=old.artifact_digest,
        layers_digest=old.layers_digest,
        labels=old.labels,
        metrics=old.metrics,
        data_read=old.data_read,
        gate_passed=old.gate_passed,
        gate_message=old.gate_message,
        run_id=old.run_id,
        created_at=now(),
    )
    session.add(new)
    artifacts.retain(session, [old.artifact_digest])
    session.flush()
    row.current_version = new.version
    placement.settle(session, [row])
    return new.version


def earlier_domain_version(
    session: Session, namespace: str, name: str, wanted: PublishAgain
) -> Earlier | None:
    """Return the newest version of a Domain that was made from the wanted spec."""
    found = _domain_version(session, find_domain(session, domain_key(namespace, name)), wanted)
    if found is None:
        return None
    digests = {found.layers_digest, *_tables(session, found)}
    return Earlier(found.version, list(artifacts.load_refs(session, digests).values()))


def publish_domain_again(
    session: Session, namespace: str, name: str, wanted: PublishAgain, version: int
) -> int | None:
    """Publish ``version`` again; return its new number, or None where it is not what is wanted any more.

    Where it is the current one already, nothing changes: the same call again gives the same answer.
    """
    placement.lock(session)
    row = find_domain(session, domain_key(namespace, name))
    old = _domain_version(session, row, wanted)
    if row is None or old is None or old.version < version:
        return None
    if old.version == row.current_version:
        return old.version
    new = DomainVersion(
        domain_id=row.id,
        version=next_version(session, DomainVersion.version, DomainVersion.domain_id == row.id),
        spec_digest=old.spec_digest,
        base_uri=old.base_uri,
        base_revision=old.base_revision,
        base_digest=old.base_digest,
        split=old.split,
        layers_digest=old.layers_digest,
        on_miss=old.on_miss,
        entries=old.entries,
        coverage=old.coverage,
        metrics=old.metrics,
        data_read=old.data_read,
        run_id=old.run_id,
        created_at=now(),
    )
    session.add(new)
    session.flush()
    tables = _tables(session, old)
    session.add_all(
        DomainVersionTable(domain_version_id=new.id, position=position, artifact_digest=digest)
        for position, digest in enumerate(tables)
    )
    artifacts.retain(session, [old.layers_digest, *tables])
    row.current_version = new.version
    placement.replace_domain_version(session, new)
    return new.version


def _adapter_version(session: Session, row: AdapterRow | None, wanted: PublishAgain) -> AdapterVersion | None:
    if row is None or (row.uid, row.spec_digest) != (wanted.uid, wanted.spec_digest):
        return None
    return session.scalar(
        select(AdapterVersion)
        # The Domain may have been made anew since, and not have these layers any more.
        .join(DomainVersion, DomainVersion.layers_digest == AdapterVersion.layers_digest)
        .join(DomainRow, DomainRow.id == DomainVersion.domain_id)
        .where(
            AdapterVersion.adapter_id == row.id,
            AdapterVersion.spec_digest == wanted.spec_digest,
            AdapterVersion.gate_passed,
            AdapterVersion.artifact_digest.is_not(None),
            DomainRow.key == row.domain,
        )
        .order_by(AdapterVersion.version.desc())
        .limit(1)
    )


def _domain_version(session: Session, row: DomainRow | None, wanted: PublishAgain) -> DomainVersion | None:
    if row is None or (row.uid, row.spec_digest) != (wanted.uid, wanted.spec_digest):
        return None
    return session.scalar(
        select(DomainVersion)
        .where(DomainVersion.domain_id == row.id, DomainVersion.spec_digest == wanted.spec_digest)
        .order_by(DomainVersion.version.desc())
        .limit(1)
    )


def _tables(session: Session, version: DomainVersion) -> list[str]:
    return list(
        session.scalars(
            select(DomainVersionTable.artifact_digest)
            .where(DomainVersionTable.domain_version_id == version.id)
            .order_by(DomainVersionTable.position)
        )
    )
