"""Bills: use in a period, priced line by line. Pure: the ledger is asked through a function.

Each line is one adapter, one meter and one price. A line's exact amount is quantity times unit price; it is
rounded once, to the currency's smallest unit, half to even; the total is the sum of the rounded lines.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from itertools import pairwise

from hmi_control_plane.billing.money import exact_product, exact_sum, rounded
from hmi_control_plane.billing.pricing import PriceList
from hmi_control_plane.metering import Quantity
from hmi_control_plane.storage import Meter

UNIT_OF = {
    Meter.REQUESTS: "request",
    Meter.ROWS: "row",
    Meter.PROMPT_TOKENS: "token",
    Meter.TRAINING_SECONDS: "second",
    Meter.RESIDENT_BYTE_HOURS: "byte-hour",
}
NO_PRICE = "no price was in force"

LineKey = tuple[str | None, Meter, datetime, datetime]


@dataclass(frozen=True, slots=True)
class BillLine:
    """Use of one meter by one adapter (None: by none) at one price, in ``[start, end)``."""

    adapter: str | None
    meter: Meter
    start: datetime
    end: datetime
    quantity: int
    unit_price: Decimal
    currency: str
    note: str = ""

    @property
    def key(self) -> LineKey:
        """What the line counts: two lines of the same key count the same use."""
        return (self.adapter, self.meter, self.start, self.end)

    @property
    def exact_amount(self) -> Decimal:
        """Quantity times unit price, before rounding."""
        return exact_product(self.quantity, self.unit_price)

    @property
    def amount(self) -> Decimal:
        """What is charged for the line."""
        return rounded(self.exact_amount, self.currency)


@dataclass(frozen=True, slots=True)
class Bill:
    """What a tenant owes for ``[start, end)``."""

    tenant: str
    tenant_id: str
    currency: str
    start: datetime
    end: datetime
    lines: tuple[BillLine, ...]

    @property
    def total(self) -> Decimal:
        """The sum of the lines' amounts."""
        return rounded(exact_sum([line.amount for line in self.lines]), self.currency)


def priced_lines(
    start: datetime,
    end: datetime,
    currency: str,
    prices: PriceList,
    use_between: Callable[[datetime, datetime], Iterable[Quantity]],
) -> list[BillLine]:
    """Return the lines of ``[start, end)``: a price that changes inside the period splits its meter's lines.

    ``use_between(start, end)`` gives the use in a half-open period. A meter without a price is listed at 0
    with a note, so that nobody overlooks it.
    """
    moments = [start, *prices.changes_within(start, end), end]
    totals: dict[LineKey, int] = {}
    for piece_start, piece_end in pairwise(moments):
        for use in use_between(piece_start, piece_end):
            key = (use.adapter, use.meter, *_price_span(use.meter, piece_start, start, end, prices))
            totals[key] = totals.get(key, 0) + use.quantity
    lines = [_line(key, quantity, currency, prices) for key, quantity in totals.items()]
    return sorted(lines, key=lambda line: (line.adapter or "", line.meter, line.start))


def without(lines: Iterable[BillLine], billed: dict[LineKey, int]) -> list[BillLine]:
    """Return the lines less what is billed already, by key; lines of which nothing is left are dropped."""
    remaining = (replace(line, quantity=line.quantity - billed.get(line.key, 0)) for line in lines)
    return [line for line in remaining if line.quantity > 0]


def _price_span(
    meter: Meter, piece_start: datetime, start: datetime, end: datetime, prices: PriceList
) -> tuple[datetime, datetime]:
    """Return the part of ``[start, end)`` around a piece in which the meter's own price does not change."""
    changes = [start, *prices.changes_within(start, end, meter), end]
    return next((left, right) for left, right in pairwise(changes) if left <= piece_start < right)


def _line(key: LineKey, quantity: int, currency: str, prices: PriceList) -> BillLine:
    adapter, meter, start, end = key
    price = prices.price_at(meter, start)
    return BillLine(
        adapter=adapter,
        meter=meter,
        start=start,
        end=end,
        quantity=quantity,
        unit_price=Decimal(0) if price is None else price,
        currency=currency,
        note=NO_PRICE if price is None else "",
    )
