"""Runtimes' reports of the windows that they looked up, each recorded once and merged later.

A report is stored as it came, in one small transaction: however many runtimes report, and for however many
tenants, the counts themselves are written only when ``merging`` merges the reports that have come in.
"""

import logging
import zlib

from pydantic import ValidationError
from sqlalchemy.orm import Session

from hmi_api.internal.window_counts import DomainWindows, WindowCountReport
from hmi_control_plane.catalog.database import insert_missing, utc_now
from hmi_control_plane.catalog.tables import PendingWindowReport, WindowReporter
from hmi_control_plane.window_counts.arrays import KeyCounts

log = logging.getLogger(__name__)


def record_report(session: Session, report: WindowCountReport) -> None:
    """Store a report, unless it or a later one of its incarnation was stored before.

    Raises InvalidInput (WindowsInvalid).
    """
    for domain in report.domains:
        for tenant in domain.tenants:
            KeyCounts.of(tenant)
    now = utc_now()
    new = {"incarnation": report.incarnation, "sequence": -1, "reported_at": now}
    insert_missing(session, WindowReporter, [new])
    # The lock makes a repeated report wait until the first one is stored.
    reporter = session.get_one(WindowReporter, report.incarnation, with_for_update=True)
    if report.sequence <= reporter.sequence:
        return
    reporter.sequence = report.sequence
    reporter.reported_at = now
    session.add(PendingWindowReport(received_at=now, data=_compressed(report)))


def load_report(row: PendingWindowReport) -> list[DomainWindows]:
    """Return what a stored report counted; nothing if another version of HMI stored it in another form."""
    try:
        return WindowCountReport.model_validate_json(zlib.decompress(row.data)).domains
    except (ValidationError, zlib.error) as error:
        log.error("a stored report of windows cannot be read and is dropped: %s", error)
        return []


def _compressed(report: WindowCountReport) -> bytes:
    return zlib.compress(report.model_dump_json(by_alias=True).encode(), 1)
