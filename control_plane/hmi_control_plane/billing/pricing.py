"""The price list: what one unit of a meter costs at any moment."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from hmi_control_plane.catalog.tables import Meter


@dataclass(frozen=True, slots=True)
class PriceChange:
    """From ``effective_from`` on, one unit of the meter costs ``unit_price``."""

    meter: Meter
    effective_from: datetime
    unit_price: Decimal


class PriceList:
    """All prices of one currency, by effective date; a price holds until the meter's next one."""

    def __init__(self, changes: Iterable[PriceChange]) -> None:
        self._changes: dict[Meter, list[PriceChange]] = {}
        for change in sorted(changes, key=lambda change: change.effective_from):
            earlier = self._changes.setdefault(change.meter, [])
            if not earlier or earlier[-1].unit_price != change.unit_price:  # else nothing changes
                earlier.append(change)

    @property
    def first(self) -> datetime | None:
        """When the first price of any meter takes effect; None without prices."""
        return min((changes[0].effective_from for changes in self._changes.values()), default=None)

    def price_at(self, meter: Meter, moment: datetime) -> Decimal | None:
        """Return the unit price in force, or None before the meter's first price."""
        changes = self._changes.get(meter, [])
        place = bisect_right(changes, moment, key=lambda change: change.effective_from)
        return changes[place - 1].unit_price if place else None

    def changes_within(self, start: datetime, end: datetime, meter: Meter | None = None) -> list[datetime]:
        """Return the moments strictly between the two at which a price (of ``meter``) changes."""
        lists = self._changes.values() if meter is None else [self._changes.get(meter, [])]
        moments = {change.effective_from for changes in lists for change in changes}
        return sorted(moment for moment in moments if start < moment < end)
