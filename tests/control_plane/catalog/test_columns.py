"""Column types mean the same on SQLite and PostgreSQL."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, StatementError

from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import ApiKey, Base, Meter, Price, Tenant


def _price(amount: Decimal) -> Price:
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    return Price(
        meter=Meter.ROWS, currency="USD", unit_price=amount, effective_from=moment, created_at=moment
    )


def _add(database: Database, *rows: Base) -> None:
    with database.write() as session:
        session.add_all(rows)


@pytest.mark.parametrize(
    "amount", ["0", "0.1", "0.000000000001", "1234567890123456.123456789012", "-5", "1E+3", "2.50"]
)
def test_money_is_stored_exactly(database: Database, amount: str) -> None:
    with database.write() as session:
        session.add(_price(Decimal(amount)))
    with database.read() as session:
        found = session.query(Price).one().unit_price
    assert found == Decimal(amount)
    assert isinstance(found, Decimal)


@pytest.mark.parametrize("amount", ["0.0000000000001", "12345678901234567", "NaN", "Infinity"])
def test_money_that_would_lose_a_digit_is_refused(database: Database, amount: str) -> None:
    with pytest.raises(StatementError, match="ValueError"):
        _add(database, _price(Decimal(amount)))


def test_timestamps_are_read_aware_and_in_utc(database: Database) -> None:
    east = timezone(timedelta(hours=5, minutes=30))
    moment = datetime(2026, 3, 1, 4, 0, tzinfo=east)
    with database.write() as session:
        session.add(Tenant(name="acme", display_name="", created_at=moment))
    with database.read() as session:
        found = session.get_one(Tenant, "acme").created_at
    assert found == moment
    assert found.utcoffset() == timedelta(0)


def test_a_naive_datetime_is_refused(database: Database) -> None:
    with pytest.raises(StatementError, match="timezone"):
        _add(database, Tenant(name="acme", display_name="", created_at=datetime(2026, 3, 1)))


def test_sqlite_is_set_up_for_many_readers_and_one_writer(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    with database.read() as session:
        assert session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert session.scalar(text("PRAGMA foreign_keys")) == 1
        assert session.scalar(text("PRAGMA busy_timeout")) > 0
    database.close()


def test_an_error_rolls_back_the_whole_transaction(database: Database) -> None:
    moment = datetime.now(UTC)
    tenant = Tenant(name="acme", display_name="", created_at=moment)
    orphan = ApiKey(id="key", tenant="nobody", name="", secret_hash="", created_at=moment)
    with pytest.raises(IntegrityError):
        _add(database, tenant, orphan)
    with database.read() as session:
        assert session.get(Tenant, "acme") is None
