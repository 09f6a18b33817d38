"""Usage events, and a spool with its flusher over a catalog database."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import Meter, UsageEventRow
from hmi_control_plane.metering.events import UsageEvent

NOON = datetime(2026, 5, 4, 12, 30, tzinfo=UTC)


def an_event(number: int, **fields: object) -> UsageEvent:
    """Return an event whose id and quantity are ``number``."""
    given: dict[str, object] = {
        "source": "/test",
        "id": str(number),
        "time": NOON,
        "tenant": "acme",
        "meter": Meter.ROWS,
        "quantity": number,
        "adapter": "spam",
    }
    return UsageEvent(**(given | fields))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def make_event() -> Callable[..., UsageEvent]:
    """A maker of events."""
    return an_event


@pytest.fixture
def ledger_ids(database: Database) -> Callable[[], list[str]]:
    """Returns the ids of all recorded events in order, duplicates included."""

    def read() -> list[str]:
        with database.read() as session:
            return list(session.scalars(select(UsageEventRow.event_id).order_by(UsageEventRow.id)))

    return read


@pytest.fixture
def spool_folder(tmp_path: Path) -> Path:
    """The spool's folder."""
    return tmp_path / "usage"
