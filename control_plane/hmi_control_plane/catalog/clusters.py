"""The cluster that a catalog belongs to: one at a time."""

from datetime import timedelta

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from hmi_api.internal.catalog import RegisteredCluster
from hmi_control_plane.catalog import placement
from hmi_control_plane.catalog.database import utc_now
from hmi_control_plane.catalog.tables import AdapterRow, Cluster, DomainRow
from hmi_control_plane.http.errors import Conflict

REGISTRATION_EXPIRES_AFTER = timedelta(minutes=2)
"""After this time without a call of its operator, another cluster can be registered with its catalog."""


def register_cluster(session: Session, uid: str) -> RegisteredCluster:
    """Register the operator of the cluster ``uid`` as the only user of this catalog.

    Raises Conflict (OtherCluster) while another cluster's operator uses it: each of two operators would take
    the other's resources for deleted ones.
    """
    placement.lock(session)
    now = utc_now()
    row = session.scalar(select(Cluster))
    if row is not None and row.uid != uid:
        silent = now - row.seen_at
        if silent < REGISTRATION_EXPIRES_AFTER:
            raise Conflict(
                "OtherCluster",
                f"This catalog is in use by cluster {row.uid}, whose operator last called "
                f"{silent.total_seconds():.0f} s ago. Give each cluster its own database; if that cluster is "
                f"gone, wait until {REGISTRATION_EXPIRES_AFTER.total_seconds():.0f} s have passed.",
            )
        session.delete(row)
        session.flush()
        row = None
    if row is None:
        row = Cluster(uid=uid, first_seen_at=now, inherited=_has_resources(session))
        session.add(row)
    row.seen_at = now
    session.flush()
    return RegisteredCluster(known_seconds=(now - row.first_seen_at).total_seconds(), inherited=row.inherited)


def _has_resources(session: Session) -> bool:
    return any(session.scalar(select(exists(select(table.id)))) for table in (DomainRow, AdapterRow))
