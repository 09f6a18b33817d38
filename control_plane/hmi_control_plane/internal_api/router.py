"""The internal API as one router, behind the internal token."""

from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends, Request

from hmi_control_plane.internal_api import resources, runs, runtimes
from hmi_control_plane.internal_api.changes import Changes
from hmi_control_plane.storage import Database

PREFIX = "/internal/v1"


def build(
    database: Database,
    require_caller: Callable[[Request], Awaitable[None]],
    changes: Changes,
    *,
    wait_limit_seconds: float = 55.0,
) -> APIRouter:
    """Return the internal API's routes; ``require_caller`` lets only HMI's own parts pass."""
    router = APIRouter(prefix=PREFIX, tags=["internal"], dependencies=[Depends(require_caller)])
    router.include_router(resources.build(database, changes))
    router.include_router(runs.build(database, changes))
    router.include_router(runtimes.build(database, changes, wait_limit_seconds=wait_limit_seconds))
    return router
