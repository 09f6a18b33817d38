"""HTTP of billing: prices, bills and invoices for administrators, and a tenant's own."""

from collections.abc import Awaitable, Callable
from datetime import UTC
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from hmi_api.errors import InvalidInput
from hmi_control_plane.api.billing_schemas import (
    BillBody,
    InvoiceBody,
    InvoiceItems,
    InvoiceRequest,
    PriceBody,
    PriceItem,
    PriceItems,
)
from hmi_control_plane.auth.authenticator import Identity
from hmi_control_plane.billing import invoices
from hmi_control_plane.billing.money import Currency
from hmi_control_plane.billing.prices import put_price, stored_prices
from hmi_control_plane.catalog.database import Database, utc_now
from hmi_control_plane.catalog.tables import InvoiceState
from hmi_control_plane.catalog.tenants import find_billed_tenant
from hmi_control_plane.http.parameters import (
    LocalTimestamp,
    TenantNameOrId,
    Timestamp,
    month_after,
    start_of_month,
)

InvoiceId = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$")]


class BillParameters(BaseModel):
    """Query parameters of a bill."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    start: LocalTimestamp | None = Field(
        default=None, alias="from", description="This month's start (UTC) when absent."
    )
    end: Timestamp | None = Field(
        default=None,
        alias="to",
        description="A month after `from` when absent: the same day and time of the next month, at the "
        "offset of `from`, or its last day where it has no such day.",
    )
    currency: Currency | None = Field(default=None, description="The installation's currency when absent.")


class OwnInvoiceParameters(BaseModel):
    """Query parameters of a list of a tenant's own invoices."""

    model_config = ConfigDict(extra="forbid")

    state: InvoiceState | None = None
    limit: int = Field(default=50, ge=1, le=200)
    cursor: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")


class InvoiceParameters(OwnInvoiceParameters):
    """The same, over all tenants or one."""

    tenant: TenantNameOrId | None = None


def build_admin_router(
    database: Database,
    require_admin: Callable[[Request], Awaitable[None]],
    *,
    currency: str,
) -> APIRouter:
    """Return prices, bills and invoices for an administrator.

    ``currency`` is the installation's, used where a request names none.
    """
    router = APIRouter(prefix="/admin/v1", tags=["billing"], dependencies=[Depends(require_admin)])
    _add_prices(router, database, currency)
    _add_invoices(router, database, currency)
    return router


def build_tenant_router(
    database: Database,
    tenant_from_key: Callable[[Request], Awaitable[Identity]],
    *,
    currency: str,
) -> APIRouter:
    """Return a tenant's own bill and invoices, which only read the database."""
    router = APIRouter(prefix="/v1", tags=["billing"])

    @router.get("/bill", summary="Your bill")
    def own_bill(
        parameters: Annotated[BillParameters, Query()],
        identity: Annotated[Identity, Depends(tenant_from_key)],
    ) -> BillBody:
        return _bill(database, identity.tenant_id, parameters, currency)

    @router.get("/invoices", summary="Your invoices")
    def own_invoices(
        parameters: Annotated[OwnInvoiceParameters, Query()],
        identity: Annotated[Identity, Depends(tenant_from_key)],
    ) -> InvoiceItems:
        with database.read() as session:
            return _page(session, parameters, identity.tenant_id, with_drafts=False)

    @router.get("/invoices/{invoice_id}", summary="One of your invoices")
    def own_invoice(
        invoice_id: InvoiceId, identity: Annotated[Identity, Depends(tenant_from_key)]
    ) -> InvoiceBody:
        with database.read() as session:
            return InvoiceBody.of(invoices.get_invoice(session, invoice_id, identity.tenant_id))

    return router


def _add_prices(router: APIRouter, database: Database, currency: str) -> None:
    @router.get("/prices", summary="The price list")
    def get_prices(currency: Annotated[Currency | None, Query()] = None) -> PriceItems:
        with database.read() as session:
            return PriceItems(items=[PriceItem.of(price) for price in stored_prices(session, currency)])

    @router.put("/prices", summary="Set a price from a moment on")
    def set_price(body: PriceBody) -> PriceItem:
        with database.write() as session:
            price = put_price(
                session,
                body.meter,
                body.currency or currency,
                body.effective_from,
                body.unit_price,
                utc_now(),
            )
            return PriceItem.of(price)

    @router.get("/bills/{tenant}", summary="A tenant's bill")
    def bill_of(tenant: TenantNameOrId, parameters: Annotated[BillParameters, Query()]) -> BillBody:
        return _bill(database, tenant, parameters, currency)


def _add_invoices(router: APIRouter, database: Database, currency: str) -> None:
    @router.post("/invoices", summary="Draft an invoice, or recompute its draft")
    def draft(body: InvoiceRequest) -> InvoiceBody:
        with database.write() as session:
            tenant = find_billed_tenant(session, body.tenant)
            invoice = invoices.make_draft(
                session, tenant, body.currency or currency, body.start, body.end, utc_now()
            )
            return InvoiceBody.of(invoice)

    @router.get("/invoices", summary="Invoices")
    def list_all(parameters: Annotated[InvoiceParameters, Query()]) -> InvoiceItems:
        with database.read() as session:
            name_or_id = parameters.tenant
            tenant_id = find_billed_tenant(session, name_or_id).id if name_or_id is not None else None
            return _page(session, parameters, tenant_id)

    @router.get("/invoices/{invoice_id}", summary="One invoice")
    def get_one(invoice_id: InvoiceId) -> InvoiceBody:
        with database.read() as session:
            return InvoiceBody.of(invoices.get_invoice(session, invoice_id))

    @router.post("/invoices/{invoice_id}/finalize", summary="Finalize a draft; it never changes afterwards")
    def finalize(invoice_id: InvoiceId) -> InvoiceBody:
        with database.write() as session:
            return InvoiceBody.of(invoices.finalize(session, invoice_id, utc_now()))

    @router.post("/invoices/{invoice_id}/void", summary="Void an invoice")
    def void(invoice_id: InvoiceId) -> InvoiceBody:
        with database.write() as session:
            return InvoiceBody.of(invoices.void(session, invoice_id, utc_now()))


def _page(
    session: Session, parameters: OwnInvoiceParameters, tenant_id: str | None, *, with_drafts: bool = True
) -> InvoiceItems:
    found = invoices.list_invoices(
        session,
        tenant_id,
        parameters.state,
        parameters.limit + 1,
        parameters.cursor,
        with_drafts=with_drafts,
    )
    page = [InvoiceBody.of(invoice) for invoice in found[: parameters.limit]]
    more = len(found) > parameters.limit
    return InvoiceItems(items=page, next_cursor=page[-1].id if more else None)


def _bill(database: Database, name_or_id: str, parameters: BillParameters, currency: str) -> BillBody:
    start = parameters.start or start_of_month(utc_now())
    end = parameters.end or month_after(start).astimezone(UTC)
    start = start.astimezone(UTC)
    if start >= end:
        raise InvalidInput(
            "EmptyPeriod", f"from ({start.isoformat()}) must be earlier than to ({end.isoformat()})."
        )
    with database.read() as session:
        tenant = find_billed_tenant(session, name_or_id)
        return BillBody.of(invoices.bill_for(session, tenant, parameters.currency or currency, start, end))
