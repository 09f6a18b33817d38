"""HTTP of usage reports: a tenant's own, and all tenants' for administrators."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from hmi_api.internal.storable import WireModel
from hmi_api.resources.common import DnsLabel
from hmi_control_plane.auth.authenticator import Identity
from hmi_control_plane.catalog.database import Database, utc_now
from hmi_control_plane.catalog.tables import Meter
from hmi_control_plane.catalog.tenants import find_billed_tenant
from hmi_control_plane.http.parameters import TenantNameOrId, Timestamp, start_of_month
from hmi_control_plane.metering.reports import (
    MAX_REPORT_LINES,
    UsageGroup,
    UsageInterval,
    UsageQuery,
    build_report,
)


class UsageParameters(BaseModel):
    """Query parameters of a usage report."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    start: Timestamp | None = Field(
        default=None, alias="from", description="First moment; the start of this month when absent."
    )
    end: Timestamp | None = Field(
        default=None, alias="to", description="Moment after the last; now when absent."
    )
    bucket: UsageInterval | None = Field(
        default=None, description="hour, day or month; one window when absent."
    )
    group_by: list[UsageGroup] = Field(
        default_factory=lambda: [UsageGroup.METER],
        description="Repeatable: tenant, adapter, meter (always included).",
    )
    adapter: DnsLabel | None = Field(default=None, description="Only this adapter.")
    meter: Meter | None = Field(default=None, description="Only this meter.")
    limit: int = Field(default=100, ge=1, le=MAX_REPORT_LINES, description="Lines on a page.")
    cursor: str | None = Field(default=None, description="`next_cursor` of the page before.")

    def to_query(self, tenant_id: str | None) -> UsageQuery:
        """Return the query, with defaults taken now."""
        now = utc_now()
        return UsageQuery(
            start=self.start or start_of_month(now),
            end=self.end or now,
            bucket=self.bucket,
            groups=frozenset(self.group_by),
            tenant_id=tenant_id,
            adapter=self.adapter,
            meter=self.meter,
            limit=self.limit,
            after=self.cursor,
        )


class AdminUsageParameters(UsageParameters):
    """The same, over all tenants or one."""

    tenant: TenantNameOrId | None = Field(default=None, description="Only this tenant.")


class UsageItem(WireModel):
    """One sum; fields that the report is not split by are null."""

    start: str | None = Field(description="Start of the window, UTC.")
    tenant: str | None
    tenant_id: str | None = Field(
        description="Distinguishes tenants that had the same name at different times."
    )
    adapter: str | None
    meter: Meter
    quantity: int


class UsageList(WireModel):
    """One page of a report."""

    items: list[UsageItem]
    next_cursor: str | None = Field(description="Send it as `cursor` for the next page; null on the last.")


def build_tenant_router(
    database: Database,
    tenant_from_key: Callable[[Request], Awaitable[Identity]],
) -> APIRouter:
    """Return ``GET /v1/usage``, which only reads the database."""
    router = APIRouter(tags=["usage"])

    @router.get("/v1/usage", summary="Your usage")
    def own_usage(
        parameters: Annotated[UsageParameters, Query()],
        identity: Annotated[Identity, Depends(tenant_from_key)],
    ) -> UsageList:
        return _answer(database, parameters.to_query(identity.tenant_id))

    return router


def build_admin_router(
    database: Database,
    require_admin: Callable[[Request], Awaitable[None]],
) -> APIRouter:
    """Return ``GET /admin/v1/usage``."""
    router = APIRouter(tags=["usage"])

    @router.get("/admin/v1/usage", summary="The usage of all tenants", dependencies=[Depends(require_admin)])
    def all_usage(parameters: Annotated[AdminUsageParameters, Query()]) -> UsageList:
        tenant_id = None
        if parameters.tenant is not None:
            with database.read() as session:
                tenant_id = find_billed_tenant(session, parameters.tenant).id
        return _answer(database, parameters.to_query(tenant_id))

    return router


def _answer(database: Database, query: UsageQuery) -> UsageList:
    with database.read() as session:
        page = build_report(session, query)
    return UsageList(items=[UsageItem.model_validate(line) for line in page.lines], next_cursor=page.next)
