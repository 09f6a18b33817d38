"""Stamps: a few characters that change with what a TaskAdapter's view says of versions and serving.

They let the operator ask for thousands of TaskAdapters at once which of them to look at again.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from hmi_control_plane.catalog.tables import AdapterRow, LoadReport, Placement, Runtime

_LENGTH = 16
_Report = tuple[str, int, str, str, str]
"""Runtime, version, state, reason and message."""


def stamp_of(
    uid: str, current_version: int | None, scheduled: Iterable[str], reports: Iterable[LoadReport]
) -> str:
    """Return the stamp of an adapter, of the rows that its view is made from."""
    told: list[_Report] = [
        (row.runtime_id, row.version, row.state, row.reason, row.message) for row in reports
    ]
    return _stamp(uid, current_version, list(scheduled), told)


def adapter_stamps(session: Session, keys: Sequence[str]) -> dict[str, str]:
    """Return the stamps of TaskAdapters by ``namespace/name``, of those that there are; three statements."""
    names = [tuple(key.split("/", 1)) for key in keys if "/" in key]
    rows = session.execute(
        select(
            AdapterRow.id, AdapterRow.namespace, AdapterRow.name, AdapterRow.uid, AdapterRow.current_version
        ).where(tuple_(AdapterRow.namespace, AdapterRow.name).in_(names))
    ).all()
    ids = [row.id for row in rows]
    scheduled: dict[int | None, list[str]] = defaultdict(list)
    for adapter_id, runtime_id in session.execute(
        select(Placement.adapter_id, Placement.runtime_id)
        .join(Runtime, Runtime.id == Placement.runtime_id)
        .where(Placement.adapter_id.in_(ids), ~Runtime.lost)
        .order_by(Placement.runtime_id)
    ):
        scheduled[adapter_id].append(runtime_id)
    reports: dict[int, list[_Report]] = defaultdict(list)
    told = session.execute(
        select(
            LoadReport.adapter_id,
            LoadReport.runtime_id,
            LoadReport.version,
            LoadReport.state,
            LoadReport.reason,
            LoadReport.message,
        )
        .join(Runtime, Runtime.id == LoadReport.runtime_id)
        .where(LoadReport.adapter_id.in_(ids), ~Runtime.lost)
        .order_by(LoadReport.updated_at, LoadReport.runtime_id)
    )
    for adapter_id, runtime_id, version, state, reason, message in told:
        reports[adapter_id].append((runtime_id, version, state, reason, message))
    return {
        f"{row.namespace}/{row.name}": _stamp(
            row.uid, row.current_version, scheduled[row.id], reports[row.id]
        )
        for row in rows
    }


def _stamp(uid: str, current_version: int | None, scheduled: list[str], reports: Sequence[_Report]) -> str:
    told = json.dumps([uid, current_version, scheduled, reports])
    return hashlib.sha256(told.encode()).hexdigest()[:_LENGTH]
