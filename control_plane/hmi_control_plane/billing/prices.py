"""The price list: what one unit of a meter costs at any time, and how it is stored and changed."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hmi_control_plane.billing.money import plain_text
from hmi_control_plane.catalog.database import AdvisoryLock, acquire_lock
from hmi_control_plane.catalog.tables import Invoice, InvoiceState, Meter, Price
from hmi_control_plane.http.errors import Conflict


@dataclass(frozen=True, slots=True)
class PriceChange:
    """From ``effective_from`` on, one unit of the meter costs ``unit_price``."""

    meter: Meter
    effective_from: datetime
    unit_price: Decimal


class PriceList:
    """All prices of one currency by effective date; a price is valid until the meter's next price."""

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
        """Return the times strictly between the two at which a price (of ``meter``) changes."""
        lists = self._changes.values() if meter is None else [self._changes.get(meter, [])]
        moments = {change.effective_from for changes in lists for change in changes}
        return sorted(moment for moment in moments if start < moment < end)


def price_list(session: Session, currency: str) -> PriceList:
    """Return all prices of a currency."""
    return PriceList(
        PriceChange(Meter(price.meter), price.effective_from, price.unit_price)
        for price in session.scalars(select(Price).where(Price.currency == currency))
    )


def stored_prices(session: Session, currency: str | None) -> list[Price]:
    """Return the rows of the price list, all or one currency's, by currency, meter and date."""
    statement = select(Price).order_by(Price.currency, Price.meter, Price.effective_from)
    return list(
        session.scalars(statement if currency is None else statement.where(Price.currency == currency))
    )


def put_price(
    session: Session,
    meter: Meter,
    currency: str,
    effective_from: datetime | None,
    unit_price: Decimal,
    now: datetime,
) -> Price:
    """Set a price that is valid from ``effective_from`` on (None: from ``now`` on).

    If the same price is valid already and ``effective_from`` is None, nothing is stored and that price is
    returned. With a time it is stored, so that a price list means the same in whatever order it is set: it
    ends a price change that is set for an earlier time later.

    Raises Conflict if a final invoice covers that time or a later one.
    """
    acquire_lock(session, AdvisoryLock.BILLING)
    named, effective_from = effective_from is not None, effective_from or now
    found = session.scalars(
        select(Price)
        .where(Price.meter == str(meter), Price.currency == currency, Price.effective_from <= effective_from)
        .order_by(Price.effective_from.desc())
        .limit(1)
    ).first()
    last_end = _last_invoiced(session, currency)
    is_invoiced = last_end is not None and effective_from < last_end
    if found is not None and found.unit_price == unit_price and (is_invoiced or not named):
        return found
    if last_end is not None and is_invoiced:
        raise Conflict(
            "PriceInvoiced",
            f"A final invoice covers usage until {last_end.isoformat()}; let {plain_text(unit_price)} "
            "take effect then or later, or void that invoice first.",
        )
    if found is None or found.effective_from != effective_from:
        found = Price(
            meter=str(meter),
            currency=currency,
            effective_from=effective_from,
            unit_price=unit_price,
            created_at=now,
        )
        session.add(found)
    else:
        found.unit_price = unit_price
    session.flush()
    return found


def _last_invoiced(session: Session, currency: str) -> datetime | None:
    """Return the latest end of the periods of final invoices in a currency."""
    final = select(func.max(Invoice.period_end)).where(Invoice.state == InvoiceState.FINAL)
    return session.scalar(final.where(Invoice.currency == currency))
