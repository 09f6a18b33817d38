"""Bills from recorded usage, and the states of invoices: draft, final, void.

Every usage event has the id of the final invoice that bills it, or none. So it is billed at most once, in
whatever order invoices are drafted, finalized and voided, and for whatever periods. A draft lists unbilled
events; any number of drafts may list them. Finalizing marks the events and prices what it marked. Voiding
removes the marks. Usage that is recorded after its period was invoiced is late: the next invoice bills it, at
the price of its own time. The invoices of a tenant that are not void never overlap.
"""

import secrets
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from functools import partial

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from hmi_control_plane.billing.bill import Bill, BillLine, Use, priced_lines, total_of, use_in
from hmi_control_plane.billing.prices import price_list
from hmi_control_plane.catalog.database import AdvisoryLock, acquire_lock
from hmi_control_plane.catalog.tables import (
    MAX_AMOUNT,
    DeletedTenant,
    Invoice,
    InvoiceLine,
    InvoiceState,
    Tenant,
)
from hmi_control_plane.http.errors import Conflict, NotFound
from hmi_control_plane.metering import records

Period = tuple[datetime, datetime]


def bill_for(
    session: Session, tenant: Tenant | DeletedTenant, currency: str, start: datetime, end: datetime
) -> Bill:
    """Return what the usage in ``[start, end)`` costs, invoiced or not."""
    prices = price_list(session, currency)
    uses = use_in(start, end, prices, partial(records.sum_usage, session, tenant.id))
    return Bill(tenant.name, tenant.id, currency, start, end, tuple(priced_lines(uses, currency, prices)))


def make_draft(
    session: Session,
    tenant: Tenant | DeletedTenant,
    currency: str,
    start: datetime,
    end: datetime,
    now: datetime,
) -> Invoice:
    """Create or recompute the draft for a period; if the period has a final invoice, return that.

    Raises Conflict when another invoice that is not void covers part of the period, in whatever currency.
    """
    acquire_lock(session, AdvisoryLock.BILLING)
    live = _invoices(session, tenant.id, InvoiceState.DRAFT, InvoiceState.FINAL)
    wanted = (currency, start, end)
    same = next((one for one in live if (one.currency, one.period_start, one.period_end) == wanted), None)
    if same is not None and same.state == InvoiceState.FINAL:
        return same
    _refuse_overlap([one for one in live if one is not same], start, end)
    invoice = same or Invoice(
        id=secrets.token_hex(16),
        tenant=tenant.name,
        tenant_id=tenant.id,
        currency=currency,
        period_start=start,
        period_end=end,
        state=InvoiceState.DRAFT,
        created_at=now,
    )
    _compute_lines(session, invoice, records.is_unbilled())
    session.add(invoice)
    session.flush()
    return invoice


def finalize(session: Session, invoice_id: str, now: datetime) -> Invoice:
    """Recompute a draft for the last time and make it final; return a final invoice unchanged.

    Raises NotFound, and Conflict for a void invoice, a period that is not over or overlaps another final
    invoice, and usage from before the currency's first price.
    """
    acquire_lock(session, AdvisoryLock.BILLING)
    invoice = get_invoice(session, invoice_id)
    if invoice.state == InvoiceState.FINAL:
        return invoice
    if invoice.state == InvoiceState.VOID:
        raise Conflict("InvoiceVoid", "This invoice is void; make a new draft for its period.")
    if invoice.period_end > now:
        raise Conflict(
            "PeriodNotOver", f"The period ends at {invoice.period_end.isoformat()}; finalize it then."
        )
    final = _invoices(session, invoice.tenant_id, InvoiceState.FINAL)
    _refuse_overlap(final, invoice.period_start, invoice.period_end)
    periods = [*_late_periods(session, invoice), (invoice.period_start, invoice.period_end)]
    for start, end in periods:
        records.mark_billed(session, invoice.tenant_id, start, end, invoice.id)
    _compute_lines(session, invoice, records.is_billed_by(invoice.id))
    _refuse_use_before_prices(session, invoice)
    invoice.state, invoice.finalized_at = InvoiceState.FINAL, now
    session.flush()
    return invoice


def void(session: Session, invoice_id: str, now: datetime) -> Invoice:
    """Void an invoice; its lines stay readable and its usage can be invoiced again.

    Raises NotFound, and Conflict for a final invoice if a later invoice, made by an earlier version of HMI,
    bills the same usage: that one must be voided first, or the usage could be billed twice.
    """
    acquire_lock(session, AdvisoryLock.BILLING)
    invoice = get_invoice(session, invoice_id)
    if invoice.state == InvoiceState.FINAL:
        _refuse_if_billed_twice(session, invoice)
        records.mark_unbilled(session, invoice.id)
    if invoice.state != InvoiceState.VOID:
        invoice.state, invoice.voided_at = InvoiceState.VOID, now
        session.flush()
    return invoice


def get_invoice(session: Session, invoice_id: str, tenant_id: str | None = None) -> Invoice:
    """Return an invoice; raises NotFound.

    With ``tenant_id``, only that tenant's invoices that are or were final are found, no drafts.
    """
    invoice = session.get(Invoice, invoice_id)
    hidden = (
        tenant_id is not None
        and invoice is not None
        and (invoice.tenant_id != tenant_id or invoice.finalized_at is None)
    )
    if invoice is None or hidden:
        raise NotFound("InvoiceNotFound", f'There is no invoice "{invoice_id}".')
    return invoice


def list_invoices(
    session: Session,
    tenant_id: str | None,
    state: InvoiceState | None,
    limit: int,
    after: str | None,
    *,
    with_drafts: bool = True,
) -> list[Invoice]:
    """Return up to ``limit`` invoices by id, after ``after``."""
    wanted = {"tenant_id": tenant_id, "state": state}
    statement = select(Invoice).order_by(Invoice.id).limit(limit)
    statement = statement.filter_by(**{name: value for name, value in wanted.items() if value is not None})
    if not with_drafts:
        statement = statement.where(Invoice.finalized_at.is_not(None))
    if after is not None:
        statement = statement.where(Invoice.id > after)
    return list(session.scalars(statement))


def _compute_lines(session: Session, invoice: Invoice, which: ColumnElement[bool]) -> None:
    """Compute the lines from the events that ``which`` selects: the period's usage and late usage."""
    prices = price_list(session, invoice.currency)
    quantities = partial(records.sum_usage, session, invoice.tenant_id, which=which)
    uses = use_in(invoice.period_start, invoice.period_end, prices, quantities)
    for start, end in _late_periods(session, invoice):
        uses += use_in(start, end, prices, quantities, late=True)
    lines = priced_lines(uses, invoice.currency, prices)
    total = total_of(lines, invoice.currency)
    _refuse_too_large(total, lines)
    invoice.lines = []
    session.flush()  # deletes the old lines, whose positions the new ones reuse
    invoice.lines = [line_row(position, line) for position, line in enumerate(lines)]
    invoice.total = total


def _late_periods(session: Session, invoice: Invoice) -> list[Period]:
    """Return the earlier periods that final invoices cover: unbilled usage in them is late."""
    merged: list[Period] = []
    for earlier in _invoices(session, invoice.tenant_id, InvoiceState.FINAL):
        start, end = earlier.period_start, earlier.period_end
        if end > invoice.period_start:
            continue
        if merged and start <= merged[-1][1]:
            start, end = merged[-1][0], max(merged.pop()[1], end)
        merged.append((start, end))
    return merged


def _refuse_overlap(others: Iterable[Invoice], start: datetime, end: datetime) -> None:
    for other in others:
        if other.period_start < end and start < other.period_end:
            raise Conflict(
                "OverlappingInvoice",
                f"The {other.state} invoice {other.id} in {other.currency} covers "
                f"{other.period_start.isoformat()} to {other.period_end.isoformat()}; void it or choose "
                "another period.",
            )


def _refuse_use_before_prices(session: Session, invoice: Invoice) -> None:
    """Raise Conflict if the invoice has usage from before its currency's first price.

    It would be billed at 0, probably by mistake: a mistyped currency has no price at all. A meter without a
    price is free on purpose while another meter has a price.
    """
    first = price_list(session, invoice.currency).first
    start, end = invoice.period_start, invoice.period_end
    until = end if first is None else min(first, end)
    used = records.sum_usage(session, invoice.tenant_id, start, until, which=records.is_billed_by(invoice.id))
    if any(found.quantity for found in used):
        what = f"no price at all in {invoice.currency}"
        if first is not None:
            what = f"no price in {invoice.currency} before {first.isoformat()}"
        raise Conflict(
            "NoPrice",
            f"There is usage from {start.isoformat()} on and {what}. Set a price of any meter from then on "
            "(0 where it is free), or void this draft and draft the invoice in another currency.",
        )


def _refuse_too_large(total: Decimal, lines: Iterable[BillLine]) -> None:
    """Raise Conflict if the catalog cannot store an amount or a quantity."""
    largest = max([total, *(line.amount for line in lines)])
    if largest >= MAX_AMOUNT or any(line.quantity >= 2**63 for line in lines):
        raise Conflict(
            "AmountTooLarge",
            f"An amount of {largest:f} is too large for an invoice; check the unit prices, or choose a "
            "shorter period.",
        )


def _refuse_if_billed_twice(session: Session, invoice: Invoice) -> None:
    """Raise Conflict if a later invoice, made by an earlier version of HMI, bills the same usage."""
    for other in _invoices(session, invoice.tenant_id, InvoiceState.FINAL):
        if other.double_billed and _order(other) > _order(invoice):
            raise Conflict(
                "UseBilledTwice",
                f"Invoice {other.id} bills usage that earlier invoices bill, too; void it before this one.",
            )


def _order(invoice: Invoice) -> tuple[datetime, str]:
    return (invoice.finalized_at or invoice.created_at, invoice.id)


def _invoices(session: Session, tenant_id: str, *states: InvoiceState) -> list[Invoice]:
    """Return a tenant's invoices in all currencies, by the start of their periods."""
    statement = (
        select(Invoice)
        .where(Invoice.tenant_id == tenant_id, Invoice.state.in_(states))
        .order_by(Invoice.period_start, Invoice.id)
    )
    return list(session.scalars(statement))


def line_row(position: int, line: BillLine) -> InvoiceLine:
    """Return a line of a bill in the form in which invoices store it."""
    return InvoiceLine(
        position=position,
        meter=str(line.meter),
        adapter=None,
        description=line.note,
        usage_start=line.start,
        usage_end=line.end,
        quantity=line.quantity,
        unit_price=line.unit_price,
        amount=line.amount,
        parts=[_stored_part(part) for part in line.parts],
    )


def _stored_part(part: Use) -> dict[str, object]:
    return {
        "adapter": part.adapter,
        "from": part.start.isoformat(),
        "to": part.end.isoformat(),
        "quantity": part.quantity,
        "late": part.late,
    }
