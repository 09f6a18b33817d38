"""The admin API as one router, behind the admin key."""

from collections.abc import Callable

from fastapi import APIRouter, Depends
from pydantic import SecretStr

from hmi_control_plane.admin_api import catalog, tenants
from hmi_control_plane.auth import require_token
from hmi_control_plane.storage import Database

PREFIX = "/admin/v1"


def build(database: Database, admin_key: SecretStr, forget_key: Callable[[str], None]) -> APIRouter:
    """Return the admin API's routes; ``forget_key`` is told of each key that was revoked."""
    router = APIRouter(
        prefix=PREFIX, tags=["admin"], dependencies=[Depends(require_token(admin_key, "admin key"))]
    )
    router.include_router(tenants.build(database, forget_key))
    router.include_router(catalog.build(database))
    return router
