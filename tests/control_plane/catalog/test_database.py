"""Advisory locks: each purpose has its own lock."""

from pathlib import Path

import hmi_control_plane
from hmi_control_plane.catalog.database import AdvisoryLock


def test_advisory_locks_differ() -> None:
    values = [lock.value for lock in AdvisoryLock.__members__.values()]
    assert len(values) == len(set(values)) >= 3


def test_advisory_locks_are_acquired_in_one_place() -> None:
    package = Path(hmi_control_plane.__file__).parent
    users = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if "pg_advisory" in path.read_text()
    }
    assert users == {"catalog/database.py"}
