"""Every event is billed exactly once, in whatever order and for whatever periods invoices are made."""

import random
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count, pairwise, permutations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import func, select

from hmi_control_plane.billing import invoices
from hmi_control_plane.billing.prices import put_price, stored_prices
from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.tables import Invoice, InvoiceState, Meter, UsageEventRow
from hmi_control_plane.catalog.tenants import ensure_tenant, find_billed_tenant
from hmi_control_plane.http.errors import Conflict
from hmi_control_plane.metering.events import UsageEvent
from hmi_control_plane.metering.records import record_events

START = datetime(2026, 3, 1, tzinfo=UTC)
NOW = START + timedelta(days=365)
DAYS = 8
MOST_EVENTS = 30


def day(number: int) -> datetime:
    """Return the start of a day of the test's period."""
    return START + timedelta(days=number)


def draft(database: Database, first: int, last: int, currency: str = "EUR") -> str:
    """Draft an invoice of acme for the days from ``first`` to before ``last``; return its id."""
    with database.write() as session:
        tenant = ensure_tenant(session, "acme")
        return invoices.make_draft(session, tenant, currency, day(first), day(last), NOW).id


def finalize(database: Database, invoice_id: str) -> None:
    """Finalize an invoice."""
    with database.write() as session:
        invoices.finalize(session, invoice_id, NOW)


def final(database: Database, first: int, last: int, currency: str = "EUR") -> str:
    """Make a final invoice; return its id."""
    invoice_id = draft(database, first, last, currency)
    finalize(database, invoice_id)
    return invoice_id


def void(database: Database, invoice_id: str) -> None:
    """Void an invoice."""
    with database.write() as session:
        invoices.void(session, invoice_id, NOW)


def use(database: Database, event_id: object, moment: datetime, quantity: int = 1) -> None:
    """Record usage of rows by acme's model spam."""
    event = UsageEvent("/test", str(event_id), moment, "acme", Meter.ROWS, quantity, adapter="spam")
    with database.write() as session:
        ensure_tenant(session, "acme")
        record_events(session, [event], NOW)


def finals(database: Database) -> list[Invoice]:
    """Return all final invoices, with their lines."""
    with database.read() as session:
        found = list(session.scalars(select(Invoice).where(Invoice.state == InvoiceState.FINAL)))
        for invoice in found:
            assert invoice.lines is not None
        return found


def quantity_of(invoice: Invoice) -> int:
    """Return what all lines of an invoice bill."""
    return sum(line.quantity for line in invoice.lines)


def bill_the_rest(database: Database) -> None:
    """Void drafts, invoice every gap between final invoices, then all late usage."""
    with database.read() as session:
        drafts = session.scalars(select(Invoice.id).where(Invoice.state == InvoiceState.DRAFT)).all()
    for invoice_id in drafts:
        void(database, invoice_id)
    covered = sorted((one.period_start, one.period_end) for one in finals(database))
    edges = [START, *(edge for period in covered for edge in period), day(DAYS)]
    for number, (left, right) in enumerate(pairwise(edges)):
        if number % 2 == 0 and left < right:
            final(database, (left - START).days, (right - START).days)
    final(database, DAYS, DAYS + 1)


def test_late_usage_after_a_void_is_billed_once_by_parts_of_its_period(database: Database) -> None:
    for number in range(10):
        use(database, number, day(0) + timedelta(hours=number))
    first = final(database, 0, 2)
    for number in range(10, 17):
        use(database, number, day(0) + timedelta(hours=number))
    for number in range(17, 20):
        use(database, number, day(3))
    second = final(database, 2, 4)
    void(database, first)
    final(database, 0, 1)
    final(database, 1, 2)
    assert sum(quantity_of(invoice) for invoice in finals(database)) == 20
    assert {invoice.id: quantity_of(invoice) for invoice in finals(database)}[second] == 10


def set_price(database: Database, effective_from: datetime, price: str, currency: str = "EUR") -> None:
    """Set the price of a row."""
    with database.write() as session:
        put_price(session, Meter.ROWS, currency, effective_from, Decimal(price), NOW)


@pytest.fixture(autouse=True)
def prices(request: pytest.FixtureRequest) -> None:
    """A price in euros for all time, where a test has a database."""
    if "database" in request.fixturenames:
        set_price(request.getfixturevalue("database"), START, "0.01")


def test_a_second_invoice_in_another_currency_is_refused(database: Database) -> None:
    use(database, 1, day(0))
    euros = final(database, 0, 2)
    for first, last in ((0, 2), (1, 3)):
        with pytest.raises(Conflict, match="OverlappingInvoice") as refused:
            draft(database, first, last, "USD")
        assert euros in str(refused.value)
        assert "EUR" in str(refused.value)
    void(database, euros)
    set_price(database, START, "0.01", "USD")
    final(database, 0, 2, "USD")
    assert [(one.currency, quantity_of(one)) for one in finals(database)] == [("USD", 1)]


def test_drafts_of_earlier_versions_in_two_currencies_do_not_both_become_final(database: Database) -> None:
    use(database, 1, day(0))
    euros = draft(database, 0, 2)
    with database.write() as session:
        made = session.get_one(Invoice, euros)
        fields = {
            name: getattr(made, name)
            for name in ("tenant", "tenant_id", "period_start", "period_end", "state", "total", "created_at")
        }
        session.add(Invoice(id="d" * 32, currency="USD", **fields))
    finalize(database, euros)
    with pytest.raises(Conflict, match="OverlappingInvoice"):
        finalize(database, "d" * 32)
    assert sum(quantity_of(invoice) for invoice in finals(database)) == 1


def test_a_price_that_is_valid_already_is_not_stored_again(database: Database) -> None:
    with database.write() as session:
        for number in range(5):
            price = put_price(session, Meter.ROWS, "EUR", None, Decimal("0.01"), day(number))
            assert price.effective_from == START
        assert len(stored_prices(session, "EUR")) == 1
        put_price(session, Meter.ROWS, "EUR", None, Decimal(1), day(5))
        put_price(session, Meter.ROWS, "EUR", None, Decimal("0.01"), day(6))
        assert len(stored_prices(session, "EUR")) == 3


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_the_order_in_which_prices_are_set_does_not_matter(
    database: Database, order: tuple[int, ...]
) -> None:
    wanted = [(day(0), "0.01"), (day(1), "0.02"), (day(2), "0.01")]
    for place in order:
        set_price(database, *wanted[place])
    for number in range(4):
        use(database, number, day(number))
    with database.read() as session:
        bill = invoices.bill_for(session, find_billed_tenant(session, "acme"), "EUR", day(0), day(4))
    assert [(line.unit_price, line.quantity) for line in bill.lines] == [
        (Decimal("0.01"), 3),
        (Decimal("0.02"), 1),
    ]


class Billing(RuleBasedStateMachine):
    """Records usage, early and late, and drafts, finalizes and voids at random.

    The n-th event has the quantity 4 to the n: base 4 shows which events are billed, and how often.
    """

    template: Path
    made = Bundle("made")

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path(tempfile.mkdtemp())
        shutil.copyfile(self.template, self._folder / "catalog.db")
        self._database = Database(f"sqlite:///{self._folder / 'catalog.db'}")
        self._times: list[datetime] = []
        self._fixed: dict[str, Any] = {}
        for currency in ("EUR", "USD"):
            set_price(self._database, START, "0.01", currency)

    @rule(number=st.integers(0, DAYS - 1), hour=st.integers(0, 23))
    def use(self, number: int, hour: int) -> None:
        if len(self._times) < MOST_EVENTS:
            moment = day(number) + timedelta(hours=hour)
            use(self._database, len(self._times), moment, 4 ** len(self._times))
            self._times.append(moment)

    @rule(
        target=made,
        period=st.lists(st.integers(0, DAYS), min_size=2, max_size=2, unique=True),
        currency=st.sampled_from(["EUR", "EUR", "USD"]),
        at_once=st.booleans(),
    )
    def draft(self, period: list[int], currency: str, at_once: bool) -> str:
        first, last = sorted(period)
        try:
            invoice_id = draft(self._database, first, last, currency)
        except Conflict:
            return ""
        if at_once:
            self.finalize(invoice_id)
        return invoice_id

    @rule(invoice_id=made)
    def finalize(self, invoice_id: str) -> None:
        if not invoice_id:
            return
        try:
            finalize(self._database, invoice_id)
        except Conflict:
            return

    @rule(invoice_id=made)
    def void(self, invoice_id: str) -> None:
        if invoice_id:
            void(self._database, invoice_id)

    @rule(number=st.integers(0, DAYS - 1), price=st.sampled_from(["0.01", "0.02"]))
    def set_price(self, number: int, price: str) -> None:
        try:
            set_price(self._database, day(number), price)
        except Conflict:
            return

    @invariant()
    def no_event_is_billed_twice(self) -> None:
        found = finals(self._database)
        billed = _digits(sum(map(quantity_of, found)))
        assert set(billed) <= {0, 1}
        assert len(billed) <= len(self._times)
        for invoice in found:
            for number, digit in enumerate(_digits(quantity_of(invoice))):
                assert not digit or self._times[number] < invoice.period_end

    @invariant()
    def final_invoices_never_change(self) -> None:
        for invoice in finals(self._database):
            lines = [(line.quantity, line.unit_price, line.amount, line.parts) for line in invoice.lines]
            assert self._fixed.setdefault(invoice.id, (invoice.total, lines)) == (invoice.total, lines)

    def teardown(self) -> None:
        bill_the_rest(self._database)
        assert _digits(sum(map(quantity_of, finals(self._database)))) == [1] * len(self._times)
        self._database.close()
        shutil.rmtree(self._folder)


def _digits(number: int) -> list[int]:
    """Return a number's digits in base 4, the lowest first."""
    digits = []
    while number:
        number, digit = divmod(number, 4)
        digits.append(digit)
    return digits


def test_any_sequence_bills_each_event_exactly_once(sqlite_template: Path) -> None:
    Billing.template = sqlite_template
    run_state_machine_as_test(  # type: ignore[no-untyped-call]  # hypothesis leaves it untyped
        Billing,
        settings=settings(
            max_examples=40,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.postgres
def test_invoices_made_while_usage_arrives_bill_each_event_once(postgres_url: str) -> None:
    database = Database(postgres_url)
    set_price(database, START, "0.01")
    numbers = count()
    events, writers = 120, 3
    with database.write() as session:
        ensure_tenant(session, "acme")

    def record_use(seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 -- no secret
        for _ in range(events):
            use(database, next(numbers), day(chance.randrange(DAYS)) + timedelta(hours=chance.randrange(24)))

    def keep_accounts(seed: int) -> int:
        chance, made = random.Random(seed), []  # noqa: S311 -- no secret
        for _ in range(25):
            first, last = sorted(chance.sample(range(DAYS + 1), 2))
            try:
                invoice_id = draft(database, first, last)
                finalize(database, invoice_id)
            except Conflict:
                if made:
                    void(database, made.pop(chance.randrange(len(made))))
            else:
                made.append(invoice_id)
        return len(made)

    with ThreadPoolExecutor(2 * writers) as pool:
        recording = [pool.submit(record_use, seed) for seed in range(writers)]
        accounting = [pool.submit(keep_accounts, 100 + seed) for seed in range(writers)]
        for work in (*recording, *accounting):
            work.result(timeout=120)
    with database.read() as session:
        marked = dict(
            iter(
                session.execute(
                    select(UsageEventRow.invoice_id, func.count())
                    .where(UsageEventRow.invoice_id.is_not(None))
                    .group_by(UsageEventRow.invoice_id)
                ).all()
            )
        )
    assert {one.id: quantity_of(one) for one in finals(database) if one.lines} == marked
    bill_the_rest(database)
    assert sum(map(quantity_of, finals(database))) == writers * events
    database.close()
