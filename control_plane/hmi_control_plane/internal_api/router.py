"""The internal API as one router, behind the internal token."""

from fastapi import APIRouter, Depends
from pydantic import SecretStr

from hmi_control_plane.auth import require_token
from hmi_control_plane.internal_api import resources, runs, runtimes
from hmi_control_plane.internal_api.changes import Changes
from hmi_control_plane.storage import Database

PREFIX = "/internal/v1"


def build(
    database: Database, token: SecretStr, changes: Changes, *, wait_limit_seconds: float = 55.0
) -> APIRouter:
    """Return the internal API's routes."""
    router = APIRouter(
        prefix=PREFIX, tags=["internal"], dependencies=[Depends(require_token(token, "internal token"))]
    )
    router.include_router(resources.build(database, changes))
    router.include_router(runs.build(database, changes))
    router.include_router(runtimes.build(database, changes, wait_limit_seconds=wait_limit_seconds))
    return router
