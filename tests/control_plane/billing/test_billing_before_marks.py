"""Invoices from before events were marked as billed do not change, and their usage is not billed again."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Connection, select, text

from hmi_control_plane.api.billing_schemas import InvoiceBody
from hmi_control_plane.billing import invoices
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.migrate import config, upgrade
from hmi_control_plane.catalog.tables import UsageEventRow
from hmi_control_plane.catalog.tenants import find_billed_tenant
from hmi_control_plane.http.errors import Conflict

MARCH = datetime(2026, 3, 1, tzinfo=UTC)
APRIL, MAY, JUNE = (datetime(2026, month, 1, tzinfo=UTC) for month in (4, 5, 6))
LATE = "late: reached the ledger after its period was invoiced"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def old_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A database of the revision before, with the tenant acme and events of 10, 7 and 5 rows in March."""
    postgres = request.param == "postgres"
    url = (
        str(request.getfixturevalue("empty_postgres_url")) if postgres else f"sqlite:///{tmp_path / 'old.db'}"
    )
    upgrade(url, "0005")
    opened = Database(url)
    with opened.engine.begin() as connection:
        connection.execute(
            text("INSERT INTO tenants (name, id, display_name, created_at) VALUES ('acme', 't', '', :at)"),
            {"at": stored(MARCH)},
        )
        connection.execute(
            text(
                "INSERT INTO prices (meter, currency, unit_price, effective_from, created_at) "
                "VALUES ('rows', 'EUR', '0.004', :at, :at)"
            ),
            {"at": stored(MARCH)},
        )
        for number, quantity in enumerate((10, 7, 5)):
            connection.execute(
                text(
                    "INSERT INTO usage_events (source, event_id, tenant, tenant_id, adapter, meter, "
                    "quantity, time, recorded_at) "
                    "VALUES ('/test', :id, 'acme', 't', 'spam', 'rows', :quantity, :at, :at)"
                ),
                {"id": str(number), "quantity": quantity, "at": stored(MARCH + timedelta(days=number))},
            )
    yield opened
    opened.close()


def stored(moment: datetime) -> str:
    """Return a moment in the form that both databases store and compare."""
    return moment.strftime("%Y-%m-%d %H:%M:%S.%f")


def add_invoice(
    connection: Connection,
    invoice_id: str,
    period: tuple[datetime, datetime],
    *lines: tuple[int, datetime, datetime],
    currency: str = "EUR",
    finalized: int,
) -> None:
    """Add a final invoice of acme as earlier versions made it; a line has rows and their period."""
    connection.execute(
        text(
            "INSERT INTO invoices (id, tenant, tenant_id, currency, period_start, period_end, state, total, "
            "created_at, finalized_at) "
            "VALUES (:id, 'acme', 't', :currency, :start, :end, 'final', '1', :at, :at)"
        ),
        {
            "id": invoice_id,
            "currency": currency,
            "start": stored(period[0]),
            "end": stored(period[1]),
            "at": stored(MAY + timedelta(hours=finalized)),
        },
    )
    for position, (quantity, start, end) in enumerate(lines):
        connection.execute(
            text(
                "INSERT INTO invoice_lines (invoice_id, position, meter, adapter, description, usage_start, "
                "usage_end, quantity, unit_price, amount) VALUES (:id, :position, 'rows', 'spam', "
                ":description, :start, :end, :quantity, '0.004', '0.04')"
            ),
            {
                "id": invoice_id,
                "position": position,
                "description": LATE if end <= period[0] else "",
                "start": stored(start),
                "end": stored(end),
                "quantity": quantity,
            },
        )


def billed(database: Database) -> dict[str | None, int]:
    """Return the quantity that each invoice bills by the marks; None is the key of unbilled usage."""
    sums: dict[str | None, int] = {}
    with database.read() as session:
        for event in session.scalars(select(UsageEventRow)):
            sums[event.invoice_id] = sums.get(event.invoice_id, 0) + event.quantity
    return sums


def rows_of(database: Database, start: datetime, end: datetime) -> int:
    """Return the rows that a new final invoice for a period bills."""
    with database.write() as session:
        made = invoices.make_draft(session, find_billed_tenant(session, "acme"), "EUR", start, end, JUNE)
        return sum(line.quantity for line in invoices.finalize(session, made.id, JUNE).lines)


def body(database: Database, invoice_id: str) -> dict[str, Any]:
    """Return an invoice as the API shows it."""
    with database.read() as session:
        shown = InvoiceBody.of(invoices.get_invoice(session, invoice_id))
    return shown.model_dump(mode="json", by_alias=True)


def test_the_migration_marks_invoiced_events_and_not_late_ones(old_database: Database) -> None:
    with old_database.engine.begin() as connection:
        add_invoice(connection, "march", (MARCH, APRIL), (10, MARCH, APRIL), finalized=1)
        add_invoice(connection, "april", (APRIL, MAY), (7, MARCH, APRIL), finalized=2)
    upgrade(old_database.url)
    assert billed(old_database) == {"march": 10, "april": 7, None: 5}
    assert rows_of(old_database, MAY, JUNE) == 5
    shown = body(old_database, "march")
    [line] = shown["lines"]
    assert (shown["total"], line["adapter"], line["quantity"], line["amount"]) == ("1.00", "spam", 10, "0.04")
    assert [(part["adapter"], part["amount"]) for part in line["parts"]] == [("spam", "0.04")]
    assert "adapters" not in shown["rounding"]
    assert body(old_database, "april")["lines"][0]["parts"][0]["note"] == LATE
    # A void releases exactly the events that the invoice billed.
    with old_database.write() as session:
        invoices.void(session, "march", JUNE)
    assert rows_of(old_database, MARCH, APRIL) == 10
    command.downgrade(config(old_database.url), "0005")


def test_an_event_that_was_invoiced_in_part_is_split(old_database: Database) -> None:
    with old_database.engine.begin() as connection:
        add_invoice(connection, "march", (MARCH, APRIL), (12, MARCH, APRIL), finalized=1)
    upgrade(old_database.url)
    assert billed(old_database) == {"march": 12, None: 10}
    assert rows_of(old_database, APRIL, MAY) == 10


def test_usage_that_was_invoiced_twice_is_not_invoiced_a_third_time(old_database: Database) -> None:
    with old_database.engine.begin() as connection:
        add_invoice(connection, "euros", (MARCH, APRIL), (22, MARCH, APRIL), finalized=1)
        add_invoice(connection, "dollars", (MARCH, APRIL), (22, MARCH, APRIL), currency="USD", finalized=2)
    upgrade(old_database.url)
    assert billed(old_database) == {"euros": 22}
    assert rows_of(old_database, APRIL, MAY) == 0
    with old_database.write() as session, pytest.raises(Conflict, match="UseBilledTwice"):
        invoices.void(session, "euros", JUNE)
    with old_database.write() as session:
        invoices.void(session, "dollars", JUNE)
    assert rows_of(old_database, MAY, JUNE) == 0  # euros still bills all of it
    with old_database.write() as session:
        invoices.void(session, "euros", JUNE)
    assert rows_of(old_database, MARCH, APRIL) == 22
    with old_database.read() as session:
        assert invoices.get_invoice(session, "dollars").lines[0].amount == Decimal("0.04")
