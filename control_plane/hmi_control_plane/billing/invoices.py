"""Bills from the ledger, and the life of invoices: draft, final, void.

A draft is made anew from the ledger as often as one likes. A final invoice never changes. Use that reaches
the ledger after its period was invoiced is late: the next draft lists it, at the price of its own time.
What is late is the use in the final invoices' periods less what their lines count, so no event needs a mark
and no order of commits can lose or repeat one.
"""

import secrets
from datetime import datetime
from functools import partial

from sqlalchemy import select
from sqlalchemy.orm import Session

from hmi_control_plane.billing.bill import Bill, BillLine, LineKey, priced_lines, without
from hmi_control_plane.billing.prices import price_list, serialise
from hmi_control_plane.errors import Conflict, NotFound
from hmi_control_plane.metering import quantities
from hmi_control_plane.storage import DeletedTenant, Invoice, InvoiceLine, InvoiceState, Meter, Tenant

LATE = "late: reached the ledger after its period was invoiced"


def bill_for(
    session: Session, tenant: Tenant | DeletedTenant, currency: str, start: datetime, end: datetime
) -> Bill:
    """Return what the use in ``[start, end)`` costs, whatever has been invoiced of it."""
    return Bill(
        tenant.name, tenant.id, currency, start, end, tuple(_lines(session, tenant.id, currency, start, end))
    )


def make_draft(
    session: Session,
    tenant: Tenant | DeletedTenant,
    currency: str,
    start: datetime,
    end: datetime,
    now: datetime,
) -> Invoice:
    """Make the draft for a period, or make it anew; a final invoice for the period is returned as it is.

    Raises Conflict when another invoice that is not void covers part of the period.
    """
    serialise(session)
    live = _invoices(session, tenant.id, currency, InvoiceState.DRAFT, InvoiceState.FINAL)
    for invoice in live:
        if (invoice.period_start, invoice.period_end) == (start, end):
            if invoice.state == InvoiceState.DRAFT:
                _fill(session, invoice)
            return invoice
        if invoice.period_start < end and start < invoice.period_end:
            raise Conflict(
                "OverlappingInvoice",
                f"Invoice {invoice.id} covers {invoice.period_start.isoformat()} to "
                f"{invoice.period_end.isoformat()}; void it or choose another period.",
            )
    invoice = Invoice(
        id=secrets.token_hex(16),
        tenant=tenant.name,
        tenant_id=tenant.id,
        currency=currency,
        period_start=start,
        period_end=end,
        state=InvoiceState.DRAFT,
        created_at=now,
    )
    _fill(session, invoice)
    session.add(invoice)
    session.flush()
    return invoice


def finalize(session: Session, invoice_id: str, now: datetime) -> Invoice:
    """Make a draft anew for the last time and fix it; a final invoice is returned as it is.

    Raises NotFound, and Conflict for a void invoice or a period that is not over.
    """
    serialise(session)
    invoice = get_invoice(session, invoice_id)
    if invoice.state == InvoiceState.FINAL:
        return invoice
    if invoice.state == InvoiceState.VOID:
        raise Conflict("InvoiceVoid", "This invoice is void; make a new draft for its period.")
    if invoice.period_end > now:
        raise Conflict(
            "PeriodNotOver", f"The period ends at {invoice.period_end.isoformat()}; finalize it then."
        )
    _fill(session, invoice)
    invoice.state, invoice.finalized_at = InvoiceState.FINAL, now
    session.flush()
    return invoice


def void(session: Session, invoice_id: str, now: datetime) -> Invoice:
    """Take an invoice back; its lines stay readable and its use can be invoiced again. Raises NotFound."""
    serialise(session)
    invoice = get_invoice(session, invoice_id)
    if invoice.state != InvoiceState.VOID:
        invoice.state, invoice.voided_at = InvoiceState.VOID, now
        session.flush()
    return invoice


def get_invoice(session: Session, invoice_id: str, tenant_id: str | None = None) -> Invoice:
    """Return an invoice; raises NotFound. The tenant of ``tenant_id`` sees its own ones, and no drafts."""
    invoice = session.get(Invoice, invoice_id)
    hidden = (
        tenant_id is not None
        and invoice is not None
        and (invoice.tenant_id != tenant_id or invoice.state == InvoiceState.DRAFT)
    )
    if invoice is None or hidden:
        raise NotFound("InvoiceNotFound", f'There is no invoice "{invoice_id}".')
    return invoice


def list_invoices(
    session: Session, tenant_id: str | None, state: InvoiceState | None, limit: int, after: str | None
) -> list[Invoice]:
    """Return up to ``limit`` invoices by id, after ``after``."""
    statement = select(Invoice).order_by(Invoice.id).limit(limit)
    if tenant_id is not None:
        statement = statement.where(Invoice.tenant_id == tenant_id)
    if state is not None:
        statement = statement.where(Invoice.state == state)
    if after is not None:
        statement = statement.where(Invoice.id > after)
    return list(session.scalars(statement))


def _fill(session: Session, invoice: Invoice) -> None:
    """Give a draft its lines: its own period's use and late use, each less what is billed already."""
    final = _invoices(session, invoice.tenant_id, invoice.currency, InvoiceState.FINAL)
    billed = _billed(final)
    lines_of = partial(_lines, session, invoice.tenant_id, invoice.currency)
    own = without(lines_of(invoice.period_start, invoice.period_end), billed)
    late = [
        line
        for earlier in final
        if earlier.period_end <= invoice.period_start
        for line in without(lines_of(earlier.period_start, earlier.period_end), billed)
    ]
    rows = [_row(line, line.note) for line in own] + [_row(line, LATE) for line in late]
    for position, row in enumerate(rows):
        row.position = position
    invoice.lines = []
    session.flush()  # the old lines' positions must be free before the new ones take them
    invoice.lines = rows
    invoice.total = Bill(
        invoice.tenant,
        invoice.tenant_id,
        invoice.currency,
        invoice.period_start,
        invoice.period_end,
        (*own, *late),
    ).total


def _lines(session: Session, tenant_id: str, currency: str, start: datetime, end: datetime) -> list[BillLine]:
    use_between = partial(quantities, session, tenant_id)
    return priced_lines(start, end, currency, price_list(session, currency), use_between)


def _invoices(session: Session, tenant_id: str, currency: str, *states: InvoiceState) -> list[Invoice]:
    statement = (
        select(Invoice)
        .where(Invoice.tenant_id == tenant_id, Invoice.currency == currency, Invoice.state.in_(states))
        .order_by(Invoice.period_start)
    )
    return list(session.scalars(statement))


def _billed(invoices: list[Invoice]) -> dict[LineKey, int]:
    counted: dict[LineKey, int] = {}
    for invoice in invoices:
        for line in invoice.lines:
            key = (line.adapter, Meter(line.meter), line.usage_start, line.usage_end)
            counted[key] = counted.get(key, 0) + line.quantity
    return counted


def _row(line: BillLine, description: str) -> InvoiceLine:
    return InvoiceLine(
        meter=str(line.meter),
        adapter=line.adapter,
        description=description,
        usage_start=line.start,
        usage_end=line.end,
        quantity=line.quantity,
        unit_price=line.unit_price,
        amount=line.amount,
    )
