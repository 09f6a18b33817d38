"""Invoices on both databases: drafts, final invoices, late usage, void invoices."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count

import pytest

from hmi_control_plane.billing.invoices import bill_for, finalize, get_invoice, make_draft, void
from hmi_control_plane.billing.prices import put_price
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import Invoice, Meter
from hmi_control_plane.catalog.tenants import ensure_tenant, find_billed_tenant
from hmi_control_plane.http.errors import Conflict, NotFound
from hmi_control_plane.metering.events import UsageEvent
from hmi_control_plane.metering.records import record_events

MARCH, APRIL, MAY = (datetime(2026, month, 1, tzinfo=UTC) for month in (3, 4, 5))
JUNE = datetime(2026, 6, 1, tzinfo=UTC)
Use = Callable[[datetime, int], None]


@pytest.fixture
def use(database: Database) -> Use:
    """Records usage of rows by acme's model spam, one event at a time."""
    numbers = count()
    with database.write() as session:
        ensure_tenant(session, "acme")
        put_price(session, Meter.ROWS, "EUR", MARCH - timedelta(days=365), Decimal("0.01"), MARCH)

    def add(time: datetime, rows: int) -> None:
        event = UsageEvent("/test", str(next(numbers)), time, "acme", Meter.ROWS, rows, adapter="spam")
        with database.write() as session:
            record_events(session, [event], JUNE)

    return add


def draft(database: Database, start: datetime, end: datetime) -> Invoice:
    """Make a draft."""
    with database.write() as session:
        invoice = make_draft(session, ensure_tenant(session, "acme"), "EUR", start, end, JUNE)
        assert invoice.lines is not None
        return invoice


def final(database: Database, start: datetime, end: datetime) -> Invoice:
    """Make a final invoice."""
    invoice = draft(database, start, end)
    with database.write() as session:
        return finalize(session, invoice.id, JUNE)


def stored(
    database: Database, invoice_id: str
) -> tuple[str, Decimal, list[tuple[int, Decimal, datetime, str]]]:
    """Return an invoice's state, total and lines as they are stored."""
    with database.read() as session:
        found = get_invoice(session, invoice_id)
        lines = [(line.quantity, line.amount, line.usage_start, line.description) for line in found.lines]
        return found.state, found.total, lines


def parts(database: Database, invoice_id: str) -> list[tuple[int, datetime, bool]]:
    """Return quantity, start and lateness of the parts of all lines."""
    with database.read() as session:
        found = [part for line in get_invoice(session, invoice_id).lines for part in line.parts or []]
    return [(part["quantity"], datetime.fromisoformat(part["from"]), part["late"]) for part in found]


def test_a_draft_is_recomputed_and_stays_one_draft(database: Database, use: Use) -> None:
    use(MARCH, 100)
    first = draft(database, MARCH, APRIL)
    assert first.total == Decimal("1.00")
    use(MARCH, 50)
    again = draft(database, MARCH, APRIL)
    assert again.id == first.id
    assert stored(database, first.id) == ("draft", Decimal("1.5"), [(150, Decimal("1.5"), MARCH, "")])


def test_a_final_invoice_never_changes(database: Database, use: Use) -> None:
    use(MARCH, 100)
    invoice = final(database, MARCH, APRIL)
    before = stored(database, invoice.id)
    use(MARCH, 50)
    with database.write() as session:
        assert finalize(session, invoice.id, JUNE).id == invoice.id
    assert draft(database, MARCH, APRIL).id == invoice.id
    assert stored(database, invoice.id) == before


def test_late_usage_is_in_the_next_draft_once_at_the_price_of_its_time(database: Database, use: Use) -> None:
    use(MARCH, 100)
    final(database, MARCH, APRIL)
    with database.write() as session:
        put_price(session, Meter.ROWS, "EUR", APRIL, Decimal("0.02"), JUNE)
    use(APRIL, 10)
    use(MARCH + timedelta(days=1), 50)
    april = final(database, APRIL, MAY)
    _, total, lines = stored(database, april.id)
    assert [(quantity, amount, start) for quantity, amount, start, _ in lines] == [
        (50, Decimal("0.5"), MARCH),
        (10, Decimal("0.2"), APRIL),
    ]
    assert parts(database, april.id) == [(50, MARCH, True), (10, APRIL, False)]
    assert total == Decimal("0.7")
    assert stored(database, final(database, MAY, JUNE).id)[2] == []


def test_all_final_invoices_together_bill_every_event_once(database: Database, use: Use) -> None:
    for step in range(30):
        use(MARCH + timedelta(days=3 * step), step + 1)
        if step % 10 == 9:
            start = (MARCH, APRIL, MAY)[step // 10]
            final(database, start, (APRIL, MAY, JUNE)[step // 10])
    use(MARCH, 1000)
    with database.read() as session:
        quantities = [line.quantity for invoice in session.query(Invoice) for line in invoice.lines]
        whole = bill_for(session, find_billed_tenant(session, "acme"), "EUR", MARCH, JUNE)
    assert sum(quantities) + 1000 == sum(line.quantity for line in whole.lines)


def test_the_usage_of_a_void_invoice_can_be_invoiced_again(database: Database, use: Use) -> None:
    use(MARCH, 100)
    first = final(database, MARCH, APRIL)
    use(MARCH, 7)
    april = final(database, APRIL, MAY)
    with database.write() as session:
        void(session, first.id, JUNE)
    second = final(database, MARCH, APRIL)
    assert second.id != first.id
    assert stored(database, first.id)[0] == "void"
    assert [line[0] for line in stored(database, april.id)[2]] == [7]
    assert [line[0] for line in stored(database, second.id)[2]] == [100]


def test_impossible_invoices_are_refused_with_a_reason(database: Database, use: Use) -> None:
    invoice = draft(database, MARCH, APRIL)
    with pytest.raises(Conflict, match="OverlappingInvoice"):
        draft(database, MARCH, MAY)
    with database.write() as session, pytest.raises(Conflict, match="PeriodNotOver"):
        finalize(session, invoice.id, MARCH)
    with database.write() as session:
        void(session, invoice.id, JUNE)
    with database.write() as session, pytest.raises(Conflict, match="InvoiceVoid"):
        finalize(session, invoice.id, JUNE)
    with database.write() as session, pytest.raises(NotFound):
        finalize(session, "0" * 32, JUNE)


def test_a_price_used_by_a_final_invoice_cannot_change(database: Database, use: Use) -> None:
    final(database, MARCH, APRIL)
    with database.write() as session:
        with pytest.raises(Conflict, match="PriceInvoiced"):
            put_price(session, Meter.ROWS, "EUR", APRIL - timedelta(seconds=1), Decimal(1), JUNE)
        put_price(session, Meter.ROWS, "EUR", MARCH - timedelta(days=365), Decimal("0.010"), JUNE)
        put_price(session, Meter.ROWS, "EUR", APRIL, Decimal(1), JUNE)
        put_price(session, Meter.ROWS, "USD", MARCH, Decimal(1), JUNE)
