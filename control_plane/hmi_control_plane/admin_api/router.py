"""The admin API as one router, behind the admin key."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends, Request

from hmi_control_plane.admin_api import catalog, tenants
from hmi_control_plane.catalog.database import Database

PREFIX = "/admin/v1"


def build(
    database: Database,
    require_caller: Callable[[Request], Awaitable[None]],
    forget_key: Callable[[str], None],
    notify: Callable[[], None],
) -> APIRouter:
    """Return the admin API's routes. ``require_caller`` lets only administrators pass.

    ``forget_key`` is told of each key that was revoked; ``notify`` is called when runtimes have news to read.
    """
    router = APIRouter(prefix=PREFIX, tags=["admin"], dependencies=[Depends(require_caller)])
    router.include_router(tenants.build(database, forget_key))
    router.include_router(catalog.build(database, notify))
    return router
