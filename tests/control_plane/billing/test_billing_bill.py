"""Bills: exact until a line is rounded, once; split where a price changes."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hmi_control_plane.billing.bill import NO_PRICE, Bill, BillLine, priced_lines, use_in
from hmi_control_plane.billing.bill import Use as BilledUse
from hmi_control_plane.billing.money import exact_product, exact_sum, rounded
from hmi_control_plane.billing.prices import PriceChange, PriceList
from hmi_control_plane.catalog.tables import Meter
from hmi_control_plane.metering.records import UsageSum

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


def ledger(use: Use) -> Callable[[datetime, datetime], list[UsageSum]]:
    """Return a simple ledger: sums over a list."""

    def between(start: datetime, end: datetime) -> list[UsageSum]:
        totals: dict[tuple[str | None, Meter], int] = {}
        for hour, adapter, meter, quantity in use:
            if start <= START + timedelta(hours=hour) < end:
                totals[adapter, meter] = totals.get((adapter, meter), 0) + quantity
        return [UsageSum(adapter, meter, quantity) for (adapter, meter), quantity in totals.items()]

    return between


def price_list(changes: Change) -> PriceList:
    """Return the price list of some changes."""
    return PriceList(
        PriceChange(meter, START + timedelta(hours=hour), price) for hour, meter, price in changes
    )


def bill(start: datetime, end: datetime, prices: PriceList, use: Use, currency: str = "EUR") -> Bill:
    """Return the bill of a period."""
    lines = priced_lines(use_in(start, end, prices, ledger(use)), currency, prices)
    return Bill("acme", "tenant_1", currency, start, end, tuple(lines))


def exact(*bills: Bill) -> Decimal:
    """Return the sum of bills before rounding."""
    return exact_sum([line.exact_amount for bill in bills for line in bill.lines])


@given(use=uses, changes=changes)
def test_the_bill_equals_the_sum_of_separately_priced_events(use: Use, changes: Change) -> None:
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
def test_there_is_one_line_for_each_meter_and_price_with_a_part_for_each_adapter(
    use: Use, changes: Change
) -> None:
    prices = price_list(changes)
    made = bill(START, END, prices, use)
    assert len({(line.meter, line.unit_price, line.note) for line in made.lines}) == len(made.lines)
    for line in made.lines:
        assert START <= line.start < line.end <= END
        assert line.unit_price == (prices.price_at(line.meter, line.start) or 0)
        assert len({part.adapter for part in line.parts}) == len(line.parts)
        assert sum(part.quantity for part in line.parts) == line.quantity
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


def test_quantities_are_summed_over_adapters_before_they_are_rounded() -> None:
    prices = price_list([(0, Meter.REQUESTS, Decimal("0.004"))])
    few: Use = [(1, name, Meter.REQUESTS, n) for name, n in (("a", 2), ("b", 1), ("c", 1))]
    [line] = bill(START, END, prices, few).lines
    assert (line.quantity, line.exact_amount, line.amount) == (4, Decimal("0.016"), Decimal("0.02"))
    assert [(part.adapter, part.quantity) for part in line.parts] == [("a", 2), ("b", 1), ("c", 1)]
    many: Use = [(1, f"task-{number}", Meter.REQUESTS, 1) for number in range(1000)]
    assert bill(START, END, prices, many).total == Decimal("4.00")


def test_a_price_that_is_valid_twice_has_one_line() -> None:
    prices = price_list(
        [(hour, Meter.ROWS, Decimal(price)) for hour, price in ((0, "0.004"), (6, "1"), (12, "0.004"))]
    )
    use: Use = [(hour, "spam", Meter.ROWS, 2) for hour in (1, 7, 13)]
    cheap, dear = bill(START, END, prices, use).lines
    assert (cheap.quantity, cheap.amount, cheap.start, cheap.end) == (4, Decimal("0.02"), START, END)
    assert (dear.quantity, dear.amount) == (2, Decimal("2.00"))


def test_the_same_price_stored_again_splits_nothing() -> None:
    prices = price_list([(hour, Meter.ROWS, Decimal("0.0004")) for hour in range(5)])
    use: Use = [(hour, "spam", Meter.ROWS, 10) for hour in range(5)]
    [line] = bill(START, END, prices, use).lines
    assert (line.quantity, line.amount, len(line.parts)) == (50, Decimal("0.02"), 1)


def test_usage_without_a_price_is_listed_at_zero_with_a_note() -> None:
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
        ("0.00005", "CLF", "0.0000"),
        ("0.00015", "UYW", "0.0002"),
    ],
)
def test_a_half_is_rounded_to_even(amount: str, currency: str, expected: str) -> None:
    assert str(rounded(Decimal(amount), currency)) == expected


def test_the_largest_amounts_lose_no_digit() -> None:
    price = Decimal("9999999999999999.999999999999")
    assert Fraction(exact_product(2**63 - 1, price)) == (2**63 - 1) * Fraction(price)
    use = BilledUse("spam", Meter.ROWS, START, END, 2**63 - 1)
    line = BillLine(Meter.ROWS, price, "EUR", (use,))
    assert line.amount.as_tuple().exponent == -2
