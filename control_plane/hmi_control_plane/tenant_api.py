"""What a tenant reads of its own account: usage, its bill and its invoices.

It needs nothing but the database, so every process serves it: on a cluster tenants reach the gateway alone.
"""

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends

from hmi_api.errors import NotReady
from hmi_control_plane import billing, metering
from hmi_control_plane.auth import Authenticator
from hmi_control_plane.catalog.database import Database

_REPORTS_AT_ONCE = 4
_LONGEST_WAIT_SECONDS = 10.0


def build(database: Database, authenticator: Authenticator, *, currency: str) -> APIRouter:
    """Return the routes; ``currency`` is the installation's.

    A report takes a thread and a database connection for as long as the database needs. Only a few run at
    once, so that keys and routes of inference, which need both too, never wait for reports.
    """
    slots = asyncio.Semaphore(_REPORTS_AT_ONCE)

    async def report_slot() -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_LONGEST_WAIT_SECONDS):
                await slots.acquire()
        except TimeoutError as error:
            raise NotReady("TooManyReports", "Too many reports are being made; try again.") from error
        try:
            yield
        finally:
            slots.release()

    tenant = authenticator.tenant_from_key
    router = APIRouter(dependencies=[Depends(report_slot, scope="function")])
    router.include_router(metering.build_tenant_router(database, tenant))
    router.include_router(billing.build_tenant_router(database, tenant, currency=currency))
    return router
