"""TaskAdapters that may not stand on their Domain any more."""

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from hmi_api.internal.catalog import Revocation
from hmi_control_plane import placement
from hmi_control_plane.catalog import artifacts
from hmi_control_plane.catalog.adapters import get_adapter
from hmi_control_plane.catalog.tables import AdapterVersion
from hmi_control_plane.catalog.times import now


def revoke(session: Session, namespace: str, name: str, revocation: Revocation) -> None:
    """Note that a TaskAdapter may not stand on its Domain, and erase its versions where that is asked for.

    The moment of the first call stays. Raises NotFound (UnknownAdapter).
    """
    placement.lock(session)
    row = get_adapter(session, namespace, name)
    row.revoked_at = row.revoked_at or now()
    if not revocation.withdraw:
        return
    row.withdrawn = {"reason": revocation.reason, "message": revocation.message}
    versions = AdapterVersion.adapter_id == row.id
    digests = session.scalars(
        select(AdapterVersion.artifact_digest).where(versions, AdapterVersion.artifact_digest.is_not(None))
    ).all()
    row.current_version = None
    placement.settle(session, [row])
    session.execute(delete(AdapterVersion).where(versions))
    session.flush()
    artifacts.release(session, [digest for digest in digests if digest is not None])


def restore(session: Session, namespace: str, name: str) -> None:
    """Note that a TaskAdapter may stand on its Domain again. Raises NotFound (UnknownAdapter)."""
    row = get_adapter(session, namespace, name)
    row.revoked_at = None
    row.withdrawn = None
