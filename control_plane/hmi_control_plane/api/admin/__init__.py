"""The admin API, ``/admin/v1``: what the operator of an installation calls with the admin key.

This package has tenants, API keys and lists of the catalog; ``api.usage`` and ``api.billing`` serve usage,
prices and invoices under the same prefix. There is no SQL here.
"""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends, Request

from hmi_control_plane.api.admin import catalog, tenants
from hmi_control_plane.catalog.database import Database

PREFIX = "/admin/v1"


def build(
    database: Database,
    require_caller: Callable[[Request], Awaitable[None]],
    forget_key: Callable[[str], None],
    notify: Callable[[], None],
) -> APIRouter:
    """Return the admin API's routes. ``require_caller`` lets only administrators pass.

    ``forget_key`` is called with each revoked key; ``notify`` is called after a desired state changed.
    """
    router = APIRouter(prefix=PREFIX, tags=["admin"], dependencies=[Depends(require_caller)])
    router.include_router(tenants.build(database, forget_key))
    router.include_router(catalog.build(database, notify))
    return router
