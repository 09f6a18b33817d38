"""Bills: exact until a line is rounded, once; split where a price changes."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmi_control_plane.billing.bill import NO_PRICE, Bill, BillLine, priced_lines
from hmi_control_plane.billing.money import exact_product, exact_sum, rounded
from hmi_control_plane.billing.pricing import PriceChange, PriceList
from hmi_control_plane.metering import Quantity
from hmi_control_plane.storage import Meter

START = datetime(2026, 3, 1, tzinfo=UTC)
HOURS = 24
END = START + timedelta(hours=HOURS)

hours = st.integers(0, HOURS)
unit_prices = st.decimals(0, 1000, places=12)
uses = st.lists(
    st.tuples(
        st.integers(0, HOURS - 1),
        st.sampled_from([None, "spam", "topic"]),
        st.sampled_from([Meter.ROWS, Meter.PROMPT_TOKENS]),
        st.integers(1, 10**12),
    ),
    max_size=20,
)
changes = st.lists(
    st.tuples(st.integers(-5, HOURS), st.sampled_from([Meter.ROWS, Meter.PROMPT_TOKENS]), unit_prices),
    max_size=6,
    unique_by=lambda change: change[:2],
)
Use = list[tuple[int, str | None, Meter, int]]
Change = list[tuple[int, Meter, Decimal]]


def ledger(use: Use) -> Callable[[datetime, datetime], list[Quantity]]:
    """Return the plainest ledger: a list, summed."""

    def between(start: datetime, end: datetime) -> list[Quantity]:
        totals: dict[tuple[str | None, Meter], int] = {}
        for hour, adapter, meter, quantity in use:
            if start <= START + timedelta(hours=hour) < end:
                totals[adapter, meter] = totals.get((adapter, meter), 0) + quantity
        return [Quantity(adapter, meter, quantity) for (adapter, meter), quantity in totals.items()]

    return between


def price_list(changes: Change) -> PriceList:
    """Return the price list of some changes."""
    return PriceList(
        PriceChange(meter, START + timedelta(hours=hour), price) for hour, meter, price in changes
    )


def bill(start: datetime, end: datetime, prices: PriceList, use: Use, currency: str = "EUR") -> Bill:
    """Return the bill of a period."""
    return Bill(
        "acme",
        "tenant_1",
        currency,
        start,
        end,
        tuple(priced_lines(start, end, currency, prices, ledger(use))),
    )


def exact(*bills: Bill) -> Decimal:
    """Return the sum of bills before rounding."""
    return exact_sum([line.exact_amount for bill in bills for line in bill.lines])


@given(use=uses, changes=changes)
def test_the_bill_is_what_pricing_every_event_by_itself_gives(use: Use, changes: Change) -> None:
    total = Fraction(0)
    for hour, _, meter, quantity in use:
        earlier = [change for change in changes if change[1] == meter and change[0] <= hour]
        price = max(earlier, key=lambda change: change[0])[2] if earlier else Decimal(0)
        total += quantity * Fraction(price)
    assert Fraction(exact(bill(START, END, price_list(changes), use))) == total


@given(use=uses, changes=changes, currency=st.sampled_from(["EUR", "JPY", "KWD"]))
def test_the_total_is_the_sum_of_the_lines(use: Use, changes: Change, currency: str) -> None:
    made = bill(START, END, price_list(changes), use, currency)
    assert made.total == sum((line.amount for line in made.lines), Decimal(0))
    digits = {"EUR": 2, "JPY": 0, "KWD": 3}[currency]
    for line in made.lines:
        assert line.amount.as_tuple().exponent == -digits
        assert abs(Fraction(line.amount) - Fraction(line.exact_amount)) * 2 <= Fraction(1, 10**digits)


@given(use=uses, changes=changes, cut=hours)
def test_the_bills_of_two_parts_are_the_bill_of_the_whole_before_rounding(
    use: Use, changes: Change, cut: int
) -> None:
    prices, middle = price_list(changes), START + timedelta(hours=cut)
    parts = [
        bill(*period, prices, use) for period in ((START, middle), (middle, END)) if period[0] < period[1]
    ]
    assert exact(*parts) == exact(bill(START, END, prices, use))


@given(use=uses, changes=changes)
def test_every_line_has_one_price_and_lines_of_a_meter_do_not_overlap(use: Use, changes: Change) -> None:
    prices = price_list(changes)
    made = bill(START, END, prices, use)
    assert len({line.key for line in made.lines}) == len(made.lines)
    for line in made.lines:
        assert START <= line.start < line.end <= END
        assert prices.changes_within(line.start, line.end, line.meter) == []
        assert line.unit_price == (prices.price_at(line.meter, line.start) or 0)
    assert sum(line.quantity for line in made.lines) == sum(quantity for _, _, _, quantity in use)


def test_a_price_change_splits_only_its_own_meters_lines() -> None:
    prices = price_list(
        [(0, Meter.ROWS, Decimal("0.5")), (0, Meter.PROMPT_TOKENS, Decimal(1)), (6, Meter.ROWS, Decimal(2))]
    )
    use: Use = [(1, "spam", Meter.ROWS, 3), (7, "spam", Meter.ROWS, 4), (1, "spam", Meter.PROMPT_TOKENS, 5)]
    use.append((7, "spam", Meter.PROMPT_TOKENS, 6))
    made = bill(START, END, prices, use)
    assert [(line.meter, line.quantity, line.amount) for line in made.lines] == [
        (Meter.PROMPT_TOKENS, 11, Decimal("11.00")),
        (Meter.ROWS, 3, Decimal("1.50")),
        (Meter.ROWS, 4, Decimal("8.00")),
    ]
    assert made.total == Decimal("20.50")


def test_use_without_a_price_is_listed_at_nothing_and_says_so() -> None:
    [line] = bill(START, END, price_list([]), [(1, "spam", Meter.ROWS, 3)]).lines
    assert (line.unit_price, line.amount, line.note) == (Decimal(0), Decimal("0.00"), NO_PRICE)


@pytest.mark.parametrize(
    ("amount", "currency", "expected"),
    [
        ("0.005", "EUR", "0.00"),
        ("0.015", "EUR", "0.02"),
        ("0.025", "EUR", "0.02"),
        ("0.0250000000001", "EUR", "0.03"),
        ("0.5", "JPY", "0"),
        ("1.5", "JPY", "2"),
        ("0.0005", "KWD", "0.000"),
    ],
)
def test_a_half_goes_to_the_even_neighbour(amount: str, currency: str, expected: str) -> None:
    assert str(rounded(Decimal(amount), currency)) == expected


def test_the_largest_amounts_lose_no_digit() -> None:
    price = Decimal("9999999999999999.999999999999")
    assert Fraction(exact_product(2**63 - 1, price)) == (2**63 - 1) * Fraction(price)
    line = BillLine("spam", Meter.ROWS, START, END, 2**63 - 1, price, "EUR")
    assert line.amount.as_tuple().exponent == -2
