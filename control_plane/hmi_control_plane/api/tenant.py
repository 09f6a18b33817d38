"""A tenant's own account: usage, bill and invoices.

It needs only the database, so every process serves it: on a cluster tenants reach only the gateway.
"""

import asyncio
from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends

from hmi_api.errors import NotReady
from hmi_control_plane.api import billing, usage
from hmi_control_plane.auth import Authenticator
from hmi_control_plane.catalog.database import Database

_MAX_REPORTS = 4
_MAX_WAIT_SECONDS = 10.0


def build_router(database: Database, authenticator: Authenticator, *, currency: str) -> APIRouter:
    """Return the routes; ``currency`` is the installation's.

    A report uses a thread and a database connection until the database answers. Their number is limited, so
    that lookups of keys and routes for inference, which need both too, never wait for reports.
    """
    slots = asyncio.Semaphore(_MAX_REPORTS)

    async def report_slot() -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_MAX_WAIT_SECONDS):
                await slots.acquire()
        except TimeoutError as error:
            raise NotReady("TooManyReports", "Too many reports are being computed; try again.") from error
        try:
            yield
        finally:
            slots.release()

    tenant = authenticator.tenant_from_key
    router = APIRouter(dependencies=[Depends(report_slot, scope="function")])
    router.include_router(usage.build_tenant_router(database, tenant))
    router.include_router(billing.build_tenant_router(database, tenant, currency=currency))
    return router
