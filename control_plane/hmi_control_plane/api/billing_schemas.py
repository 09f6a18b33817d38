"""Bodies of the billing API. Amounts are strings, times are RFC 3339."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Self

from pydantic import Field, model_validator

from hmi_api.internal.storable import WireModel
from hmi_control_plane.billing.bill import LATE, NO_PRICE, UNIT_OF, Bill
from hmi_control_plane.billing.invoices import line_row
from hmi_control_plane.billing.money import Amount, Currency, UnitPrice, exact_product, minor_digits, rounded
from hmi_control_plane.catalog.tables import Invoice, InvoiceLine, InvoiceState, Meter, Price
from hmi_control_plane.http.parameters import TenantNameOrId, Timestamp


class PriceBody(WireModel):
    """A price to set."""

    meter: Meter
    unit_price: UnitPrice = Field(description='Price of one unit, a string such as "0.000002".')
    currency: Currency | None = Field(default=None, description="The installation's currency when absent.")
    effective_from: Timestamp | None = Field(default=None, description="Now when absent.")


class PriceItem(WireModel):
    """A stored price."""

    meter: Meter
    unit: str
    unit_price: Amount
    currency: str
    effective_from: datetime

    @classmethod
    def of(cls, price: Price) -> Self:
        """Return the item of a stored price."""
        return cls(
            meter=Meter(price.meter),
            unit=UNIT_OF[Meter(price.meter)],
            unit_price=price.unit_price,
            currency=price.currency,
            effective_from=price.effective_from,
        )


class PriceItems(WireModel):
    """The price list."""

    items: list[PriceItem]


class PartItem(WireModel):
    """The part of one adapter in a line."""

    adapter: str | None = Field(description="Null for usage without an adapter.")
    start: datetime = Field(alias="from")
    end: datetime = Field(alias="to")
    quantity: int
    amount: Amount = Field(description="Quantity times the line's unit price, exact: not rounded.")
    note: str = Field(description=f'Empty, or "{LATE}".')


class LineItem(WireModel):
    """One line of a bill or an invoice: a meter at one price."""

    adapter: str | None = Field(
        description="Only on invoices of earlier versions, whose lines are of one adapter each."
    )
    meter: Meter
    unit: str
    start: datetime = Field(alias="from")
    end: datetime = Field(alias="to")
    quantity: int
    unit_price: Amount
    amount: Amount = Field(description="Quantity times unit price, rounded.")
    note: str = Field(description=f'Empty, or "{NO_PRICE}".')
    parts: list[PartItem] = Field(description="The line's quantity by adapter, late use apart.")

    @classmethod
    def of(cls, line: InvoiceLine, currency: str) -> Self:
        """Return the item of a stored line; storage drops an amount's trailing zeros."""
        return cls(
            adapter=line.adapter,
            meter=Meter(line.meter),
            unit=UNIT_OF[Meter(line.meter)],
            start=line.usage_start,
            end=line.usage_end,
            quantity=line.quantity,
            unit_price=line.unit_price,
            amount=rounded(line.amount, currency),
            note=line.description,
            parts=[_part(part, line.unit_price) for part in _parts(line)],
        )


class BillBody(WireModel):
    """A tenant's bill."""

    tenant: str
    tenant_id: str
    currency: str
    start: datetime = Field(alias="from")
    end: datetime = Field(alias="to")
    lines: list[LineItem]
    total: Amount
    rounding: str

    @classmethod
    def of(cls, bill: Bill) -> Self:
        """Return the body of a bill."""
        return cls(
            tenant=bill.tenant,
            tenant_id=bill.tenant_id,
            currency=bill.currency,
            start=bill.start,
            end=bill.end,
            lines=[
                LineItem.of(line_row(position, line), bill.currency)
                for position, line in enumerate(bill.lines)
            ],
            total=bill.total,
            rounding=_rounding(bill.currency, by_adapter=False),
        )


class InvoiceRequest(WireModel):
    """Request to draft an invoice for ``[from, to)``."""

    tenant: TenantNameOrId
    start: Timestamp = Field(alias="from")
    end: Timestamp = Field(alias="to")
    currency: Currency | None = Field(default=None, description="The installation's currency when absent.")

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.start >= self.end:
            raise ValueError("from must be earlier than to")
        return self


class InvoiceBody(WireModel):
    """An invoice."""

    id: str
    state: InvoiceState
    tenant: str
    tenant_id: str
    currency: str
    start: datetime = Field(alias="from")
    end: datetime = Field(alias="to")
    lines: list[LineItem]
    total: Amount
    rounding: str
    created_at: datetime
    finalized_at: datetime | None
    voided_at: datetime | None

    @classmethod
    def of(cls, invoice: Invoice) -> Self:
        """Return the body of a stored invoice."""
        return cls(
            id=invoice.id,
            state=InvoiceState(invoice.state),
            tenant=invoice.tenant,
            tenant_id=invoice.tenant_id,
            currency=invoice.currency,
            start=invoice.period_start,
            end=invoice.period_end,
            lines=[LineItem.of(line, invoice.currency) for line in invoice.lines],
            total=rounded(invoice.total, invoice.currency),
            rounding=_rounding(
                invoice.currency, by_adapter=any(line.parts is None for line in invoice.lines)
            ),
            created_at=invoice.created_at,
            finalized_at=invoice.finalized_at,
            voided_at=invoice.voided_at,
        )


class InvoiceItems(WireModel):
    """A page of invoices."""

    items: list[InvoiceBody]
    next_cursor: str | None = Field(description="Send it as `cursor` for the next page; null on the last.")


def _parts(line: InvoiceLine) -> list[dict[str, Any]]:
    """Return the parts of a line. Earlier versions stored none: their lines are of one adapter."""
    if line.parts is not None:
        return line.parts
    whole = {"adapter": line.adapter, "from": line.usage_start, "to": line.usage_end}
    return [{**whole, "quantity": line.quantity, "late": line.description == LATE}]


def _part(part: Mapping[str, Any], unit_price: Decimal) -> PartItem:
    return PartItem(
        adapter=part["adapter"],
        start=part["from"],
        end=part["to"],
        quantity=part["quantity"],
        amount=exact_product(part["quantity"], unit_price),
        note=LATE if part["late"] else "",
    )


def _rounding(currency: str, *, by_adapter: bool) -> str:
    """Return how amounts were rounded; earlier versions made and rounded a line for each adapter."""
    summed = "" if by_adapter else "quantities of one meter and price are summed over adapters; "
    return (
        f"{summed}each line is rounded once, half to even, to {minor_digits(currency)} decimal places; "
        "the total is the lines' sum"
    )
