"""Migrations upgrade to the tables that the models define, and can be undone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import inspect

from hmi_control_plane.catalog.database import Database
from hmi_control_plane.catalog.migrate import config, upgrade
from hmi_control_plane.catalog.tables import Base


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'empty.db'}"
    return str(request.getfixturevalue("empty_postgres_url"))


def _tables(url: str) -> set[str]:
    database = Database(url)
    names = set(inspect(database.engine).get_table_names())
    database.close()
    return names - {"alembic_version"}


def test_upgrade_downgrade_and_upgrade_again_succeed(empty_url: str) -> None:
    upgrade(empty_url)
    assert _tables(empty_url) == set(Base.metadata.tables)
    command.downgrade(config(empty_url), "base")
    assert _tables(empty_url) == set()
    upgrade(empty_url)
    assert _tables(empty_url) == set(Base.metadata.tables)


def test_each_revision_can_be_undone(empty_url: str) -> None:
    upgrade(empty_url, "0001")
    first = _tables(empty_url)
    upgrade(empty_url, "0002")
    command.downgrade(config(empty_url), "0001")
    assert _tables(empty_url) == first


def test_migrations_match_the_models(empty_url: str) -> None:
    upgrade(empty_url)
    command.check(config(empty_url))


def test_upgrading_twice_changes_nothing(empty_url: str) -> None:
    upgrade(empty_url)
    upgrade(empty_url)
    assert _tables(empty_url) == set(Base.metadata.tables)


def _start_migration(url: str, folder: Path) -> subprocess.Popen[bytes]:
    arguments = [sys.executable, "-m", "hmi_control_plane", "migrate"]
    return subprocess.Popen(arguments, cwd=folder, env={**os.environ, "HMI_DATABASE_URL": url})


def test_processes_that_start_at_once_migrate_once(empty_postgres_url: str, tmp_path: Path) -> None:
    started = [_start_migration(empty_postgres_url, tmp_path) for _ in range(3)]
    assert [process.wait(timeout=120) for process in started] == [0, 0, 0]
    command.check(config(empty_postgres_url))


def test_the_command_needs_no_ini_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'catalog.db'}"
    assert _start_migration(url, tmp_path).wait(timeout=120) == 0
    assert "usage_events" in _tables(url)
