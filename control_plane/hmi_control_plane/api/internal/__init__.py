"""The internal API, ``/internal/v1``: what the operator, trainers and runtimes call.

It serves the types of ``hmi_api.internal``. Each route names the roles that may call it. There is no
SQL here.
"""

from fastapi import APIRouter

from hmi_control_plane.api.internal import artifacts, resources, runs, runtimes
from hmi_control_plane.api.internal.runtimes import ChangeSignal
from hmi_control_plane.artifact_files import ArtifactFiles
from hmi_control_plane.auth.guards import RoleGuard
from hmi_control_plane.catalog.database import Database

PREFIX = "/internal/v1"
ARTIFACTS_PREFIX = f"{PREFIX}/artifacts"


def build(
    database: Database,
    guard: RoleGuard,
    changes: ChangeSignal,
    files: ArtifactFiles,
    *,
    artifact_limit_bytes: int,
    wait_limit_seconds: float,
) -> APIRouter:
    """Return the internal API's routes; ``guard`` checks the role of each caller."""
    router = APIRouter(prefix=PREFIX, tags=["internal"])
    router.include_router(resources.build(database, guard, changes, files))
    router.include_router(runs.build(database, guard, changes))
    router.include_router(runtimes.build(database, guard, changes, wait_limit_seconds=wait_limit_seconds))
    router.include_router(artifacts.build(database, guard, files, limit_bytes=artifact_limit_bytes))
    return router
