"""Which cluster a catalog belongs to: one at a time."""

from datetime import timedelta

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from hmi_api.internal.catalog import ClusterClaimed
from hmi_control_plane import placement
from hmi_control_plane.catalog.tables import AdapterRow, Cluster, DomainRow
from hmi_control_plane.catalog.times import now
from hmi_control_plane.http.errors import Conflict

SILENT_FOR = timedelta(minutes=2)
"""A cluster whose operator has said nothing for so long gives the catalog free for another."""


def claim(session: Session, uid: str) -> ClusterClaimed:
    """Note that the operator of a cluster works on this catalog.

    Raises Conflict (OtherCluster) while another cluster's operator does: two would take one another's
    resources for deleted ones.
    """
    placement.lock(session)
    moment = now()
    row = session.scalar(select(Cluster))
    if row is not None and row.uid != uid:
        silent = moment - row.seen_at
        if silent < SILENT_FOR:
            raise Conflict(
                "OtherCluster",
                f"This catalog is in use by cluster {row.uid}, whose operator was here "
                f"{silent.total_seconds():.0f} s ago. Give each cluster a database of its own; where that "
                f"cluster is gone, wait until {SILENT_FOR.total_seconds():.0f} s are over.",
            )
        session.delete(row)
        session.flush()
        row = None
    if row is None:
        row = Cluster(uid=uid, first_seen_at=moment, inherited=_has_resources(session))
        session.add(row)
    row.seen_at = moment
    session.flush()
    return ClusterClaimed(known_seconds=(moment - row.first_seen_at).total_seconds(), inherited=row.inherited)


def _has_resources(session: Session) -> bool:
    return any(session.scalar(select(exists(select(table.id)))) for table in (DomainRow, AdapterRow))
