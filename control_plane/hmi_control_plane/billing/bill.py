"""Bills: usage in a period, priced and summed line by line. Pure: usage is read through a function.

Each line is one meter at one price. The quantities of all adapters, and of all intervals in which the meter
had that price, are summed first; quantity times price is then rounded once, to the currency's smallest unit,
half to even. The parts of the adapters have exact amounts. The total is the sum of the lines.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import pairwise

from hmi_control_plane.billing.money import exact_product, exact_sum, rounded
from hmi_control_plane.billing.prices import PriceList
from hmi_control_plane.catalog.tables import Meter
from hmi_control_plane.metering.records import UsageSum

UNIT_OF = {
    Meter.REQUESTS: "request",
    Meter.ROWS: "row",
    Meter.PROMPT_TOKENS: "token",
    Meter.TRAINING_SECONDS: "second",
    Meter.RESIDENT_BYTE_HOURS: "byte-hour",
}
NO_PRICE = "no price was in force"
LATE = "late: reached the ledger after its period was invoiced"


@dataclass(frozen=True, slots=True)
class Use:
    """What one adapter (or None) used of a meter in ``[start, end)``, at one price.

    ``late`` usage lies before the period of the invoice that bills it.
    """

    adapter: str | None
    meter: Meter
    start: datetime
    end: datetime
    quantity: int
    late: bool = False


@dataclass(frozen=True, slots=True)
class BillLine:
    """Usage of one meter at one price; an adapter has one part, and another for its late usage."""

    meter: Meter
    unit_price: Decimal
    currency: str
    parts: tuple[Use, ...]
    note: str = ""

    @property
    def start(self) -> datetime:
        """The start of the earliest part."""
        return min(part.start for part in self.parts)

    @property
    def end(self) -> datetime:
        """The end of the latest part."""
        return max(part.end for part in self.parts)

    @property
    def quantity(self) -> int:
        """The sum of the parts."""
        return sum(part.quantity for part in self.parts)

    @property
    def exact_amount(self) -> Decimal:
        """UsageSum times unit price, before rounding."""
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
        return total_of(self.lines, self.currency)


def total_of(lines: Iterable[BillLine], currency: str) -> Decimal:
    """Return the sum of the lines' rounded amounts."""
    return rounded(exact_sum([line.amount for line in lines]), currency)


def use_in(
    start: datetime,
    end: datetime,
    prices: PriceList,
    use_between: Callable[[datetime, datetime], Iterable[UsageSum]],
    *,
    late: bool = False,
) -> list[Use]:
    """Return the usage in ``[start, end)``, split where prices change.

    ``use_between(start, end)`` returns the usage in a half-open period.
    """
    moments = [start, *prices.changes_within(start, end), end]
    uses: list[Use] = []
    for piece_start, piece_end in pairwise(moments):
        spans = {meter: _price_span(meter, piece_start, start, end, prices) for meter in Meter}
        uses += [
            Use(found.adapter, found.meter, *spans[found.meter], found.quantity, late)
            for found in use_between(piece_start, piece_end)
        ]
    return uses


def priced_lines(uses: Iterable[Use], currency: str, prices: PriceList) -> list[BillLine]:
    """Return one line for each meter and price.

    A meter without a price is listed at 0 with a note, so that it is not overlooked.
    """
    groups: dict[tuple[Meter, Decimal | None], list[Use]] = {}
    for use in uses:
        groups.setdefault((use.meter, prices.price_at(use.meter, use.start)), []).append(use)
    lines = [
        BillLine(
            meter=meter,
            unit_price=Decimal(0) if price is None else price,
            currency=currency,
            parts=_parts(group),
            note=NO_PRICE if price is None else "",
        )
        for (meter, price), group in groups.items()
    ]
    return sorted(lines, key=lambda line: (line.meter, line.start, line.unit_price))


def _parts(uses: list[Use]) -> tuple[Use, ...]:
    """Return the usage of one meter at one price, summed by adapter; late usage is kept apart."""
    sums: dict[tuple[bool, str | None], Use] = {}
    for use in uses:
        key = (use.late, use.adapter)
        found = sums.get(key, use)
        sums[key] = Use(
            use.adapter,
            use.meter,
            min(found.start, use.start),
            max(found.end, use.end),
            use.quantity + (found.quantity if found is not use else 0),
            use.late,
        )
    return tuple(sums[key] for key in sorted(sums, key=lambda key: (key[0], key[1] or "")))


def _price_span(
    meter: Meter, piece_start: datetime, start: datetime, end: datetime, prices: PriceList
) -> tuple[datetime, datetime]:
    """Return the longest part of ``[start, end)`` around ``piece_start`` with one price of the meter."""
    changes = [start, *prices.changes_within(start, end, meter), end]
    return next((left, right) for left, right in pairwise(changes) if left <= piece_start < right)
