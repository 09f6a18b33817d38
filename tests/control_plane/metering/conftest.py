"""Usage events, and a spool with its flusher over a catalog database."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select

from hmi_control_plane.metering import UsageEvent
from hmi_control_plane.storage import Database, Meter
from hmi_control_plane.storage import UsageEvent as UsageRow

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
    """A reader of the ids in the ledger, in order; a double would show."""

    def read() -> list[str]:
        with database.read() as session:
            return list(session.scalars(select(UsageRow.event_id).order_by(UsageRow.id)))

    return read


@pytest.fixture
def spool_folder(tmp_path: Path) -> Path:
    """Where the spool lies."""
    return tmp_path / "usage"
