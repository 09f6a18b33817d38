"""Advisory locks differ by purpose, and connections to a new SQLite file wait for one another."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from sqlalchemy import text

import hmi_control_plane
from hmi_control_plane.catalog.database import AdvisoryLock, Database


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


def test_first_connections_to_a_new_sqlite_file_wait_for_one_another(tmp_path: Path) -> None:
    for number in range(30):
        path = tmp_path / f"{number}.db"
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE t (x INTEGER)")
        connection.close()
        ready = Barrier(3)

        def insert(path: Path = path, ready: Barrier = ready) -> None:
            database = Database(f"sqlite:///{path}")
            ready.wait(timeout=60)
            with database.write() as session:
                session.execute(text("INSERT INTO t VALUES (1)"))
            database.close()

        with ThreadPoolExecutor(3) as pool:
            for done in [pool.submit(insert) for _ in range(3)]:
                done.result()
